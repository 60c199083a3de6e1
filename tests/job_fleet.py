"""A queue, and a worker in this process, for the tests of jobs."""

import time
from typing import Any

from redis import Redis

from shared.jobs.history import read_events
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.kinds.kind import Task
from worker.jobs.lease_worker import LeaseWorker

QUEUE = queue_name("relay")
KEY = f"rq:queue:{QUEUE}"


class Fleet:
    """One queue and a worker for it whose functions note what they ran."""

    def __init__(self, redis: Redis, url: str) -> None:
        self.redis, self.url = redis, url
        self.queue = TaskQueue(QUEUE, redis)
        # As if a worker had looked just now: no grace period.
        redis.set(f"bitfleet:looked:{QUEUE}", time.time())
        self.ran: list[str] = []
        self.workers = 0

    def work(self) -> LeaseWorker:
        """Run all that is queued, in this process."""
        self.workers += 1
        worker = LeaseWorker(
            QUEUE,
            connection=Redis.from_url(self.url),
            beat_connection=Redis.from_url(self.url),
            functions={"calibration": self._run, "sensitivity": self._run},
            host="here",
            name=f"worker-{self.workers}",
            lease_seconds=30,
            beat_seconds=5,
        )
        # Signal handlers are the process's, and that is pytest's.
        worker._install_signal_handlers = lambda: None  # type: ignore[method-assign]
        worker.work(burst=True, logging_level="CRITICAL")
        return worker

    def _run(self, task: Task, context: Any) -> dict[str, Any]:
        self.ran.append(task.id)
        return {"outcome": "stored"}

    def inject(self, job_id: str | bytes, fields: dict[str, Any]) -> None:
        """Put a job as somebody with the Redis password would: hash and list, by hand."""
        key = b"rq:job:" + (job_id.encode() if isinstance(job_id, str) else job_id)
        self.redis.hset(key, mapping={"status": "queued", "origin": QUEUE, "timeout": 60} | fields)
        self.redis.rpush(KEY, job_id)

    def failure(self, job_id: str) -> str:
        """Why a job failed, as its history and RQ tell it."""
        assert job_id in self.queue.failed_ids()
        events = [event for event in read_events(self.redis, job_id) if event.outcome == "failed"]
        assert len(events) == 1, "a refused job is not tried again"
        return events[0].detail
