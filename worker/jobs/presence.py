"""Which machines are connected: what a worker says of itself in Redis beside what RQ has it say."""

from collections.abc import Iterator
from typing import cast

from redis import Redis

from shared.jobs.asides import kind_of_job, read_asides
from shared.jobs.redis_time import redis_time
from shared.jobs.task_queue import TaskQueue
from shared.jobs.worker_keys import worker_keys

HOST_FIELD = "bitfleet_host"
"""In a worker's hash: only workers of ours have it."""


def connected_hosts(queue: TaskQueue) -> set[str]:
    """Return the machines on which workers of ours serve a queue."""
    return set(_hosts(queue))


def able_hosts(queue: TaskQueue, job_id: str) -> set[str]:
    """Return the connected machines that have not set jobs like this one aside."""
    redis: Redis = queue.connection
    kind = kind_of_job(job_id)
    asides = read_asides(redis, queue.name, redis_time(redis))
    return connected_hosts(queue) - {entry.aside.host for entry in asides if entry.kind == kind}


def _hosts(queue: TaskQueue) -> Iterator[str]:
    with queue.connection.pipeline(transaction=False) as pipeline:
        for key in worker_keys(queue):
            pipeline.hgetall(key)
        answers = cast(list[dict[bytes, bytes]], pipeline.execute(raise_on_error=False))
    for fields in answers:
        if isinstance(fields, dict) and b"death" not in fields and HOST_FIELD.encode() in fields:
            yield fields[HOST_FIELD.encode()].decode("utf-8", "replace")
