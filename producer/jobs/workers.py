"""The workers of a store's queue, as they have registered in Redis."""

from dataclasses import dataclass
from typing import cast

from redis import Redis
from rq.utils import now, utcparse

from shared.jobs.task_queue import TaskQueue, queue_name
from shared.jobs.worker_keys import worker_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker process."""

    name: str
    host: str
    state: str
    seconds_silent: float


def live_workers(connection: Redis, store_id: str) -> list[WorkerInfo]:
    """Return the registered workers by name. A crashed worker stays in the list for about a minute."""
    queue = TaskQueue(queue_name(store_id), connection)
    workers = []
    for key in worker_keys(queue):
        raw = cast(dict[bytes, bytes], connection.hgetall(key))
        fields = {_text(name): _text(value) for name, value in raw.items()}
        try:
            silent = (now() - utcparse(fields["last_heartbeat"])).total_seconds()
        except (KeyError, ValueError):
            # No worker of ours.
            continue
        if "death" in fields:
            continue
        workers.append(
            WorkerInfo(
                name=key.rpartition(":")[2],
                host=fields.get("hostname", "?"),
                state=fields.get("state", "?"),
                seconds_silent=max(0.0, silent),
            )
        )
    return workers


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
