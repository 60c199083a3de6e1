"""The keys of registered workers, without what is none."""

import re
from typing import cast

from redis import Redis
from rq.worker import BaseWorker
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from shared.jobs.task_queue import TaskQueue

_PREFIX = BaseWorker.redis_worker_namespace_prefix
_KEY = re.compile(rf"{_PREFIX}[A-Za-z0-9_.-]{{1,200}}")


def worker_keys(queue: TaskQueue) -> list[str]:
    """Return the keys of a queue's workers, in order. RQ's own function fails over one that is no text."""
    return [key for member in _members(queue) if _KEY.fullmatch(key := _text(member))]


def forget_odd_workers(queue: TaskQueue) -> None:
    """Remove what is no worker's key from the list of a queue's workers."""
    odd = [member for member in _members(queue) if not _KEY.fullmatch(_text(member))]
    if odd:
        queue.connection.srem(WORKERS_BY_QUEUE_KEY % queue.name, *odd)


def _members(queue: TaskQueue) -> list[bytes]:
    redis: Redis = queue.connection
    return sorted(cast(set[bytes], redis.smembers(WORKERS_BY_QUEUE_KEY % queue.name)))


def _text(member: bytes) -> str:
    return member.decode("utf-8", "replace")
