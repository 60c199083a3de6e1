"""Taking finished shards out of a store: checked against the run, kept, and only then forgotten there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shared.errors import RunMismatchError, ShardCorruptError, StoreTroubleError
from shared.kinds.kind import Task
from shared.stores.records import Record
from shared.stores.store import ShardStore

MAX_REASON = 500


@dataclass(slots=True)
class Intake:
    """What one pass over a store took in, and what it could not."""

    merged: list[str] = field(default_factory=list)
    """Task ids."""
    problems: list[str] = field(default_factory=list)
    """One line a shard that was dropped: which, and what is wrong with it."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Task id to why its file could not be read; it is left where it is, and tried again by the next pass."""


def take_in(
    tasks: Sequence[Task],
    records: dict[str, Record],
    store: ShardStore,
    keep: Callable[[Record, bytes], None],
    told: Callable[[Task], None] = lambda task: None,
) -> Intake:
    """Move finished shards of `tasks` from the store into `keep`, and add their records to `records`.

    `keep` writes everything and the record last; it raises ShardCorruptError or RunMismatchError for a
    shard that does not belong. Such a shard is dropped from the store, so that its task is found missing
    and enqueued again. Killed at any point, the next pass goes on where this one was.

    Raises:
        StoreTroubleError: the store can't be read at all; a single file that can't is passed over.
    """
    intake = Intake()
    if not tasks:
        return intake
    namespace = tasks[0].namespace
    finished = store.record_ids(namespace)
    for task in tasks:
        if task.id not in finished:
            continue
        if task.id not in records:
            try:
                records[task.id] = _take_one(task, store, keep)
                intake.merged.append(task.id)
                told(task)
            except (ShardCorruptError, RunMismatchError) as error:
                intake.problems.append(f"{task.label}: dropped, to be computed again: {_printable(error)}")
            except StoreTroubleError as error:
                # Raises what is wrong with the store, if it is not this file alone.
                store.record_ids(namespace)
                intake.unreadable[task.id] = _printable(error)
                continue
        store.discard(namespace, task.id)
    return intake


def _take_one(task: Task, store: ShardStore, keep: Callable[[Record, bytes], None]) -> Record:
    record = store.record(task.namespace, task.id)
    if record.task != task:
        raise RunMismatchError(f"its record is of other settings (from {record.host})")
    keep(record, store.shard(record))
    return record


def _printable(error: Exception) -> str:
    """What is wrong with a shard may quote it: kilobytes, or orders to a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(error)[:MAX_REASON])
