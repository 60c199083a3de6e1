"""Move finished shards from a store to the folder. They leave the store only after they are saved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shared.errors import RunMismatchError, ShardCorruptError, StoreTroubleError
from shared.kinds.kind import Task
from shared.printable import printable
from shared.stores.records import Record
from shared.stores.store import ShardStore

MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Dropped:
    """A shard that was dropped."""

    task_id: str
    host: str
    """Where it was made, as its record says; empty if the record can't be read."""
    cause: str
    """What is wrong, in a few words that are the same for all shards with this fault."""
    line: str
    """What is wrong with this one."""


@dataclass(slots=True)
class Intake:
    """The outcome of one pass over a store."""

    merged: list[str] = field(default_factory=list)
    """Ids of the tasks whose shards were saved."""
    problems: list[str] = field(default_factory=list)
    """One line for each dropped shard, with the reason."""
    dropped: list[Dropped] = field(default_factory=list)
    """The same shards, for counting."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """By task id, why its file could not be read. It stays in the store for the next pass."""


def take_in(
    tasks: Sequence[Task],
    records: dict[str, Record],
    store: ShardStore,
    keep: Callable[[Record, bytes], None],
    told: Callable[[Task], None] = lambda task: None,
) -> Intake:
    """Move the finished shards of `tasks` from the store to the folder, and add their records to `records`.

    `keep` saves a shard, its record last. It raises ShardCorruptError or RunMismatchError for a bad shard,
    which is then deleted from the store, so that its task counts as missing and is enqueued again. If this
    process is killed at any point, the next pass continues.

    Raises:
        StoreTroubleError: the store can't be read. A single unreadable file is skipped instead.
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
            host = ""
            try:
                record = store.record(task.namespace, task.id)
                host = record.host
                _take_one(task, record, store, keep)
                records[task.id] = record
                intake.merged.append(task.id)
                told(task)
            except (ShardCorruptError, RunMismatchError) as error:
                line = f"{task.label}: dropped, to be computed again: {printable(str(error), MAX_REASON)}"
                intake.problems.append(line)
                intake.dropped.append(Dropped(task.id, printable(host, MAX_REASON), _cause(error), line))
            except StoreTroubleError as error:
                # This raises if the whole store is unreadable, and not this file alone.
                store.record_ids(namespace)
                intake.unreadable[task.id] = printable(str(error), MAX_REASON)
                continue
        store.discard(namespace, task.id)
    return intake


def _take_one(task: Task, record: Record, store: ShardStore, keep: Callable[[Record, bytes], None]) -> None:
    if record.task != task:
        raise RunMismatchError(f"its record is of other settings (from {record.host})")
    keep(record, store.shard(record))


def _cause(error: Exception) -> str:
    return "damaged" if isinstance(error, ShardCorruptError) else "of other settings or model files"
