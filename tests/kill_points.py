"""Kills a worker at every command that it sends to Redis in the course of one job.

    python -m tests.kill_points URL WHAT WHO

URL is that of an empty Redis; WHAT becomes of the job, if nobody dies: done, failed, "handed back"; WHO is
"supervised", or "alone" on a machine that is gone. For every command there are two deaths: just before it is
sent, and just after. Prints a line of JSON for each: where the worker died, where its job is once the
supervisor looked, or once the lease was over, and how many attempts it has left.

Each worker is forked from this process, which has imported everything: that takes milliseconds.
"""

import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from redis import Redis
from redis.connection import AbstractConnection

from shared.jobs.connection import connect
from shared.jobs.history import read_events
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.kinds.kind import Task
from tests.tasks import image_task
from worker.jobs.job_context import HandBackError, JobContext
from worker.jobs.lease_worker import LeaseWorker
from worker.jobs.maintenance import return_lost_jobs
from worker.jobs.post_mortem import report_death

QUEUE = queue_name("relay")
LEASE = 30
TASK = image_task(0)
EXIT_FINISHED = 0


class Killer:
    """Ends this process at a command: 2 k before the k-th is sent, 2 k + 1 after it."""

    def __init__(self, point: int, tell: Callable[[str], None]) -> None:
        self._point, self._tell = point, tell
        self._count = itertools.count()
        self._send = AbstractConnection.send_packed_command
        AbstractConnection.send_packed_command = self._send_or_die  # type: ignore[method-assign]

    @property
    def _send_or_die(self) -> Callable[..., None]:
        def send_packed_command(connection: Any, command: Any, check_health: bool = True) -> None:
            # The beat's thread counts on.
            first = 2 * next(self._count)
            self._die_at(first, f"before {_name(command)}")
            self._send(connection, command, check_health)
            self._die_at(first + 1, f"after {_name(command)}")

        return send_packed_command

    def _die_at(self, point: int, place: str) -> None:
        if point == self._point:
            self._tell(place)
            os.kill(os.getpid(), signal.SIGKILL)


def _name(command: Any) -> str:
    packed = b"".join(command) if isinstance(command, list) else command
    names = re.findall(rb"\*\d+\r\n\$\d+\r\n([A-Z]+)", packed)
    return " ".join(name.decode() for name in names)


def work(url: str, name: str, what: str) -> None:
    """A worker until its queue is empty; its job lasts until the first beat is over."""
    beaten = threading.Event()

    def run(task: Task, context: JobContext) -> dict[str, Any]:
        assert beaten.wait(20)
        if what == "failed":
            raise ValueError("for a test")
        if what == "handed back":
            raise HandBackError("for a test")
        return {"outcome": "stored"}

    class Worker(LeaseWorker):
        def _maintain(self, redis: Redis) -> None:
            super()._maintain(redis)
            if redis is not self.connection:
                beaten.set()

    worker = Worker(
        QUEUE,
        connection=connect(url),
        beat_connection=connect(url, patient=False),
        functions={"calibration": run},
        host="here",
        name=name,
        lease_seconds=LEASE,
        beat_seconds=0.01,
    )
    worker.work(logging_level="CRITICAL", max_jobs=1, burst=True)


def die_at(point: int, url: str, what: str) -> tuple[int, str]:
    """Fork a worker that dies at a point; return its exit status and where that was."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        Killer(point, lambda place: os.write(write, place.encode()) and None)
        try:
            work(url, f"worker-{point}", what)
        finally:
            os._exit(EXIT_FINISHED)
    os.close(write)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(read) as place:
        return status, place.read()


def main(url: str, what: str, who: str) -> int:
    """Try every point until a worker gets through alive."""
    with Redis.from_url(url) as redis:
        queue = TaskQueue(QUEUE, redis)
        # The first one lives: it leaves its scripts in Redis, so that the others all send the same.
        for point in itertools.count(-1):
            redis.flushall()
            # A worker looked just now: no grace period.
            redis.set(f"bitfleet:looked:{QUEUE}", time.time())
            queue.enqueue_tasks([TASK])
            status, place = die_at(point, url, what)
            if who == "supervised" and status != EXIT_FINISHED:
                report_death(url, QUEUE, f"worker-{point}", status)
            if who == "alone":
                for lease in redis.zrange(queue.started_job_registry.key, 0, -1):
                    redis.zadd(queue.started_job_registry.key, {lease: 1})
                return_lost_jobs(redis, QUEUE)
            job = TaskJob.fetch(TASK.id, connection=redis, serializer=queue.serializer)
            line = {
                "died": place,
                "waits": queue.in_flight().queued == (TASK.id,),
                "leased": bool(queue.in_flight().started),
                "status": job.get_status(refresh=False),
                "attempts": sum(event.outcome == "started" for event in read_events(redis, TASK.id)),
            }
            print(json.dumps(line), flush=True)  # noqa: T201
            if status == EXIT_FINISHED and point >= 0:
                return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
