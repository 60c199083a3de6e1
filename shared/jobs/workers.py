"""The workers of a queue, as they have registered in Redis."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple, cast

import msgspec
from redis import Redis

from shared.decoding import decode_or_none
from shared.jobs.asides import Entry, read_asides
from shared.jobs.redis_time import redis_time
from shared.jobs.tally import Tally, decode_tally
from shared.jobs.task_queue import TaskQueue
from shared.jobs.worker_keys import worker_keys
from shared.printable import printable

HOST_FIELD = "bitfleet_host"
START_FIELD = "bitfleet_start"
SEEN_FIELD = "bitfleet_seen"
TALLY_FIELD = "bitfleet_tally"
VERSIONS_FIELD = "bitfleet_versions"
"""In a worker's hash, beside what RQ writes: its machine, its `worker start`, when it was seen last, by
Redis' clock, what it has done, and of which versions it is. Only workers of ours have them."""


class Place(NamedTuple):
    """One `worker start` on one machine. Another one there may have other folders and files."""

    host: str
    start_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """One worker process."""

    name: str
    host: str
    state: str
    start_id: str | None
    """Of its `worker start`; None: a worker of RQ's own, which can do none of our jobs."""
    seconds_silent: float
    tally: Tally = field(default_factory=Tally)
    """What it has done since its start."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of bitfleet, MLX, Python and the system; empty for a worker of an earlier revision."""


_versions_decoder = msgspec.json.Decoder(dict[str, str])


def live_workers(queue: TaskQueue) -> list[WorkerInfo]:
    """Return the registered workers by name. A crashed worker stays in the list for about a minute."""
    redis: Redis = queue.connection
    keys = worker_keys(queue)
    with redis.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.hgetall(key)
        answers = cast(list[dict[bytes, bytes]], pipeline.execute())
    now = redis_time(redis) if keys else 0.0
    workers = []
    for key, raw in zip(keys, answers, strict=True):
        fields = {_text(name): printable(_text(value)) for name, value in raw.items()}
        if "last_heartbeat" not in fields or "death" in fields:
            continue
        workers.append(
            WorkerInfo(
                name=printable(key.rpartition(":")[2]),
                host=fields.get(HOST_FIELD) or fields.get("hostname", "?"),
                state=fields.get("state", "?"),
                start_id=fields.get(START_FIELD),
                seconds_silent=max(0.0, now - _number(fields.get(SEEN_FIELD), now)),
                tally=decode_tally(raw.get(TALLY_FIELD.encode(), b"")),
                versions=_versions(raw.get(VERSIONS_FIELD.encode(), b"")),
            )
        )
    return workers


def speeds_by_host(workers: Iterable[WorkerInfo]) -> dict[str, float]:
    """Return the mean floating point operations a second of each host's workers that have timed a pass."""
    found: dict[str, list[float]] = {}
    for worker in workers:
        if worker.tally.flops_per_second:
            found.setdefault(worker.host, []).append(worker.tally.flops_per_second)
    return {host: fmean(speeds) for host, speeds in found.items()}


def able_places(queue: TaskQueue, kind: str) -> set[Place]:
    """Return where workers are connected that have not set a kind of tasks aside."""
    unable = {entry.start_id for entry in asides_of(queue, kind)}
    return {
        Place(worker.host, worker.start_id)
        for worker in live_workers(queue)
        if worker.start_id is not None and worker.start_id not in unable
    }


def asides_of(queue: TaskQueue, kind: str) -> list[Entry]:
    """Return who has set a kind of tasks aside now, and why."""
    redis: Redis = queue.connection
    return [entry for entry in read_asides(redis, queue.name, redis_time(redis)) if entry.kind == kind]


def _versions(line: bytes) -> dict[str, str]:
    found = decode_or_none(_versions_decoder, line) or {}
    return {printable(name, 40): printable(value, 80) for name, value in list(found.items())[:20]}


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _number(text: str | None, otherwise: float) -> float:
    try:
        return float(text or otherwise)
    except ValueError:
        return otherwise
