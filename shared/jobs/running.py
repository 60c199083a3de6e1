"""Jobs that run now: who has each, for how long, how far it is, and how long its lease still holds."""

from dataclasses import dataclass
from datetime import datetime
from typing import cast

from redis import Redis

from shared.jobs.history import read_progress
from shared.jobs.redis_time import redis_time
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue, is_job_id
from shared.printable import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """A job under a lease."""

    job_id: str
    label: str
    """Its task in words."""
    worker: str
    """Name of the worker that holds the lease."""
    step: str
    """How far it is, in the worker's words; empty before the first."""
    seconds: float | None
    """Since it was taken; None if that can't be read."""
    lease_seconds: float
    """Until the lease ends, by Redis' clock; negative once it has ended."""


def running_jobs(queue: TaskQueue) -> list[RunningJob]:
    """Return the jobs that workers hold now, in the order in which their leases end."""
    redis: Redis = queue.connection
    leases = cast(
        list[tuple[bytes, float]],
        redis.zrange(queue.started_job_registry.key, 0, -1, withscores=True),
    )
    ends: dict[str, float] = {}
    for lease, end in leases:
        entry, _, _ = lease.partition(b":")
        if is_job_id(entry):
            ends[entry.decode()] = end
    if not ends:
        return []
    fields = ("worker_name", "description", "started_at")
    with redis.pipeline(transaction=False) as pipeline:
        for job_id in ends:
            for field in fields:
                pipeline.hget(TaskJob.key_for(job_id), field)
        answers = cast(list[bytes | None], pipeline.execute())
    progress = read_progress(redis, queue.name)
    now = redis_time(redis)
    jobs = []
    for place, (name, end) in enumerate(ends.items()):
        texts = [(answer or b"").decode("utf-8", "replace") for answer in answers[3 * place : 3 * place + 3]]
        worker, label, started = map(printable, texts)
        told = progress.get(name)
        jobs.append(
            RunningJob(
                job_id=name,
                label=label or name,
                worker=worker,
                # What an earlier attempt said is not this one's.
                step=printable(told.text) if told and told.worker == worker else "",
                seconds=_seconds_since(started, now),
                lease_seconds=end - now,
            )
        )
    return jobs


def queue_age(queue: TaskQueue) -> float | None:
    """Return for how many seconds the first job has waited; None if none waits, or that can't be read."""
    redis: Redis = queue.connection
    first = cast(list[bytes], redis.lrange(queue.key, 0, 0))
    if not first or not is_job_id(first[0]):
        return None
    enqueued = cast(bytes | None, redis.hget(TaskJob.key_for(first[0].decode()), "enqueued_at"))
    return _seconds_since((enqueued or b"").decode("utf-8", "replace"), redis_time(redis))


def _seconds_since(iso: str, now: float) -> float | None:
    try:
        return max(0.0, now - datetime.fromisoformat(iso).timestamp())
    except (ValueError, OverflowError):
        return None
