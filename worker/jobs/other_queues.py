"""Jobs that wait in queues which this worker does not serve."""

from collections.abc import Iterator
from typing import cast

from redis import Redis
from rq.queue import Queue

from shared.jobs.task_queue import parse_queue_name
from shared.runs import PROTOCOL


def waiting_for_others(connection: Redis, queue: str) -> Iterator[str]:
    """A line for each other queue of ours that holds jobs: how many, and which workers they wait for."""
    # Not RQ's Queue.all: it ends in an exception over the first entry that is no queue's.
    for key in cast(set[bytes], connection.smembers(Queue.redis_queues_keys)):
        name = key.decode("utf-8", "replace").removeprefix(Queue.redis_queue_namespace_prefix)
        parsed = parse_queue_name(name)
        count = connection.llen(Queue.redis_queue_namespace_prefix + name)
        if parsed is None or name == queue or not count:
            continue
        protocol, store_id = parsed
        if protocol != PROTOCOL:
            yield (
                f"{count} jobs wait for workers of protocol {protocol}; this revision speaks {PROTOCOL}: "
                "install the revision that the producer runs"
            )
        else:
            yield (
                f"{count} jobs wait for workers with store {store_id}: give the run's --store (or none for "
                "the relay)"
            )
