"""Runs: all that is in Redis and in the store, by the run that it belongs to."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from msgspec import Struct

from producer.fleet import Fleet
from producer.jobs.claims import read_claims
from shared.errors import BitfleetError, InputError
from shared.jobs.redis_time import redis_time
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.kinds.kind import Task
from shared.layout.sample_index import decode_index
from shared.printable import printable
from shared.stores.store import ShardStore
from shared.stores.usage import Usage

UNCLAIMED = "unclaimed"
"""The name of what belongs to no run that can be found."""
MAX_INDEX_BYTES = 8_000_000
"""A list of a sample set's parts is not longer."""
SHORTEST = 4
"""So many letters of a run's id suffice, where no other run's begins with them."""
_JOB = re.compile(r"[a-z]+-([A-Za-z0-9_]{1,80})-.*")


class RunContent(Struct, frozen=True, kw_only=True):
    """What Redis and the store hold of one run."""

    run: str
    """Its id; `unclaimed` for samples that belong to no run that can be found."""
    model: str | None
    folder: str | None
    """The calibration folder that enqueued it or collected last; None: an older revision did."""
    host: str | None
    """The machine that has this folder."""
    since: float | None
    seen: float | None
    """Seconds since a command in that folder asked for the tasks first, and last."""
    queued: int
    running: int
    failed: int
    finished: int
    """Tasks that wait in the store until they are collected."""
    shard_bytes: int
    blob_bytes: int
    """Bytes of the samples that workers need; what two runs share counts for both."""
    namespaces: tuple[str, ...]
    """Under which the store keeps it: the run's id, and those of its requests."""
    blobs: tuple[str, ...]
    """Digests; one that lists others first."""

    @property
    def size(self) -> int:
        """Bytes of all together."""
        return self.shard_bytes + self.blob_bytes


@dataclass(slots=True)
class _Group:
    """What is found out of one run."""

    model: str | None = None
    folder: str | None = None
    host: str | None = None
    since: float | None = None
    seen: float | None = None
    namespaces: set[str] = field(default_factory=set)
    roots: set[str] = field(default_factory=set)


def runs(fleet: Fleet) -> list[RunContent]:
    """Return every run that has anything there, the largest first. Changes nothing."""
    queue = TaskQueue(queue_name(fleet.store.id), fleet.connection)
    in_flight, failed = queue.in_flight(), queue.failed_ids()
    jobs = {
        "queued": _by_namespace(in_flight.queued),
        "running": _by_namespace(in_flight.started),
        "failed": _by_namespace(failed - in_flight.ids),
    }
    claims = read_claims(fleet.connection, queue.name)
    claimed = {kind.split("-")[1] for kind in claims}
    known = claimed.union(*jobs.values())
    usage = fleet.store.usage(known)
    now = redis_time(fleet.connection)
    groups: dict[str, _Group] = defaultdict(_Group)
    for kind, note in sorted(claims.items(), key=lambda item: item[1].seen):
        group = groups[note.run]
        group.namespaces.add(kind.split("-")[1])
        group.roots.update(note.blobs)
        group.model, group.folder, group.host = note.model, note.folder, note.host
        group.since = max(group.since or 0.0, now - note.since)
        group.seen = max(0.0, now - note.seen)
    for namespace in sorted(known.union(usage.namespaces) - claimed):
        ids = [task_id for each in jobs.values() for task_id in each.get(namespace, ())]
        task = _any_task(fleet.store, queue, namespace, ids)
        group = groups[task.run.id if task else namespace]
        group.namespaces.add(namespace)
        if task:
            group.model = group.model or task.run.model
            group.roots.update(task.blobs)
    found, taken = [], set[str]()
    for run, group in groups.items():
        blobs = _blobs(fleet.store, usage, sorted(group.roots))
        taken.update(blobs)
        found.append(_content(run, group, blobs, jobs, usage))
    if left := tuple(sorted(usage.blobs.keys() - taken)):
        found.append(_content(UNCLAIMED, _Group(), left, jobs, usage))
    return sorted(found, key=lambda content: (-content.size, content.run))


def find_run(found: Sequence[RunContent], name: str) -> RunContent:
    """Return the run of that id, or whose id or request's id begins so.

    Raises:
        InputError: there is none, or more than one.
    """
    exact = [content for content in found if name in (content.run, *content.namespaces)]
    fits = exact or [
        content
        for content in found
        if len(name) >= SHORTEST and any(each.startswith(name) for each in (content.run, *content.namespaces))
    ]
    if len(fits) == 1:
        return fits[0]
    there = ", ".join(content.run for content in (fits or found)[:8]) or "nothing at all"
    what = "more than one run is" if fits else "no run here is"
    raise InputError(f"{what} named {printable(name, 80)!r}; there is {there}: `producer runs` lists them")


def _by_namespace(ids: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for task_id in ids:
        if match := _JOB.fullmatch(task_id):
            found[match[1]].append(task_id)
    return found


def _content(
    run: str, group: _Group, blobs: tuple[str, ...], jobs: dict[str, dict[str, list[str]]], usage: Usage
) -> RunContent:
    names = tuple(sorted(group.namespaces))
    counts = {state: sum(len(found.get(name, ())) for name in names) for state, found in jobs.items()}
    held = [usage.namespaces[name] for name in names if name in usage.namespaces]
    return RunContent(
        run=run,
        model=group.model,
        folder=group.folder,
        host=group.host,
        since=group.since,
        seen=group.seen,
        finished=sum(each.records for each in held),
        shard_bytes=sum(each.size for each in held),
        blob_bytes=sum(usage.blobs.get(blob, 0) for blob in blobs),
        namespaces=names,
        blobs=blobs,
        **counts,
    )


def _any_task(store: ShardStore, queue: TaskQueue, namespace: str, ids: Sequence[str]) -> Task | None:
    """Return a task of a namespace that no folder claims, as a record or a job has it."""
    for task_id in sorted(store.record_ids(namespace))[:3]:
        with suppress(BitfleetError):
            return store.record(namespace, task_id).task
    return next((task for task_id in ids[:3] if (task := queue.task_of(task_id)) is not None), None)


def _blobs(store: ShardStore, usage: Usage, roots: Sequence[str]) -> tuple[str, ...]:
    """Return the digests of those blobs, and of the parts that they list, that are in the store."""
    found = dict.fromkeys(root for root in roots if root in usage.blobs)
    for root in list(found):
        if usage.blobs[root] <= MAX_INDEX_BYTES:
            with suppress(BitfleetError):
                index = decode_index(store.blob(root))
                found.update(dict.fromkeys(index.parts if index else ()))
    return tuple(digest for digest in found if digest in usage.blobs)
