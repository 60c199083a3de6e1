"""Who is at work on a queue, with what."""

from dataclasses import dataclass

from redis import Redis

from shared.jobs.asides import Entry, read_asides
from shared.jobs.redis_time import redis_time
from shared.jobs.running import RunningJob, queue_age, running_jobs
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.jobs.workers import WorkerInfo, live_workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """The workers of a queue, and what they do."""

    workers: list[WorkerInfo]
    jobs: dict[str, RunningJob]
    """By the name of the worker that has it."""
    asides: list[Entry]
    """What machines leave to others."""
    queue_age: float | None
    """Seconds for which the first job has waited."""


def who_is_there(connection: Redis, store_id: str) -> Present:
    """Return who is connected for a store's jobs now."""
    queue = TaskQueue(queue_name(store_id), connection)
    return Present(
        workers=live_workers(queue),
        jobs={job.worker: job for job in running_jobs(queue)},
        asides=read_asides(connection, queue.name, redis_time(connection)),
        queue_age=queue_age(queue),
    )
