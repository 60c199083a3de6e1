"""A queue and worker processes for it, for the tests of leases."""

import subprocess
import sys
import time
from pathlib import Path
from typing import cast

from redis import Redis
from rq.job import Job, JobStatus

from shared.jobs.history import read_events
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.kinds.kind import Task
from tests.tasks import image_task, wait_until
from worker.jobs.verdict import COST

ROOT = Path(__file__).parent.parent
QUEUE = queue_name("relay")
LEASE = 30
"""Longer than any test waits: a test that wants one over says so with `expire_leases`."""


class Fleet:
    """A queue, and worker processes for it that are gone when the test is."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.redis = url, Redis.from_url(url)
        self.queue = TaskQueue(QUEUE, self.redis)
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str) -> subprocess.Popen[bytes]:
        with (self._folder / name).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.lease_script", self.url, name, str(LEASE)],
                cwd=ROOT,
                stderr=log,
            )
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.redis.close()

    def log(self, name: str) -> str:
        return (self._folder / name).read_text()

    def ran(self) -> list[str]:
        return [line.decode() for line in self.redis.lrange("ran", 0, -1)]

    def job(self, task: Task) -> Job:
        return TaskJob.fetch(task.id, connection=self.redis, serializer=self.queue.serializer)

    def attempts(self, task: Task) -> float:
        """What the job's attempts so far count."""
        return sum(COST.get(event.outcome, 0) for event in read_events(self.redis, task.id))

    def outcomes(self, task: Task) -> list[str]:
        return [event.outcome for event in read_events(self.redis, task.id)]

    def is_done(self, task: Task) -> bool:
        return self.job(task).get_status() == JobStatus.FINISHED

    def begin(self, name: str, prompt: str) -> tuple[subprocess.Popen[bytes], Task]:
        """A worker in the middle of a task."""
        task = image_task(0, prompt=prompt)
        self.queue.enqueue_tasks([task])
        process = self.start(name)
        wait_until(lambda: f"{name} starts {task.id}" in self.ran())
        return process, task

    def start_by_hand(self, task: Task, lease: str, *, until: float) -> None:
        """A job of somebody who is not there, leased until a time (seconds since 1970)."""
        self.queue.enqueue_tasks([task])
        self.redis.lrem(self.queue.key, 0, task.id)
        self.redis.hset(f"rq:job:{task.id}", "status", JobStatus.STARTED)
        self.redis.zadd(f"rq:wip:{QUEUE}", {f"{task.id}:{lease}": until})

    def lease(self) -> bytes:
        """The one lease that there is."""
        (lease,) = self.redis.zrange(f"rq:wip:{QUEUE}", 0, -1)
        return cast(bytes, lease)

    def end_lease(self, lease: bytes) -> None:
        """Expire a lease until a worker noticed: a last beat of its holder may have been on its way."""

        def is_gone() -> bool:
            self._end(lease)
            return self.redis.zscore(f"rq:wip:{QUEUE}", lease) is None

        wait_until(is_gone)

    def expire_leases(self) -> None:
        """As if the seconds of every lease were over; whoever had them must be dead."""
        for lease in self.redis.zrange(f"rq:wip:{QUEUE}", 0, -1):
            self._end(lease)

    def _end(self, lease: bytes) -> None:
        # And no grace period holds up whoever looks.
        self.redis.set(f"bitfleet:looked:{QUEUE}", time.time())
        self.redis.delete(f"bitfleet:grace:{QUEUE}")
        self.redis.zadd(f"rq:wip:{QUEUE}", {lease: 1}, xx=True)
