"""The ledger: what is wanted, queued, running, finished, collected and failed of a run, and why.

Whoever wants to know how far a run is asks here. What a pass has read of the folder it does not read again
while it is unchanged.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from redis import Redis

from producer.folder.calib_folder import CalibFolder
from producer.jobs.reconcile import Reconciled, reconcile
from producer.kinds.part import Part
from producer.kinds.registry import parts_of
from shared.jobs.history import Event, Progress, read_events, read_progress
from shared.jobs.task_queue import queue_name
from shared.kinds.kind import Task
from shared.stores.store import ShardStore

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class PartState:
    """How many tasks of a part are where."""

    title: str
    total: int
    done: int
    """Collected."""
    waiting: int
    """Finished, not collected yet."""
    in_flight: int
    """Queued or running."""
    enqueued: int
    """Put into the queue by this very command."""
    reasons: dict[str, str]
    """Task id to why it is not done."""
    failures: list[str]
    """One line a task that gave up."""
    unreadable: int = 0
    """Finished, but their files in the store can't be read."""

    @property
    def complete(self) -> bool:
        """Everything asked for is collected."""
        return self.done == self.total

    @property
    def settled(self) -> bool:
        """Nothing more will come by itself."""
        return self.done + len(self.failures) + self.unreadable == self.total


class Ledger:
    """Reads folder, store and queue; only `reconcile` changes something: it enqueues what is missing."""

    def __init__(self, folder: CalibFolder, connection: Redis, store: ShardStore) -> None:
        self.folder = folder
        self.store = store
        self._connection = connection
        self._endings: dict[str, str] = {}
        """Of failed tasks."""

    def parts(self) -> Iterator[Part]:
        """Every part of the folder, as it stands now."""
        return parts_of(self.folder)

    def survey(self) -> list[PartState]:
        """How far everything is, changing nothing."""
        return [
            self.reconcile(part, frozenset(part.collected().records), enqueue=False) for part in self.parts()
        ]

    def reconcile(
        self, part: Part, done: frozenset[str], *, enqueue: bool, unreadable: Mapping[str, str] = _NONE
    ) -> PartState:
        """How far a part is of which `done` is collected; `enqueue` what is neither done nor on its way.

        `unreadable` says, by task id, why the files of some finished tasks can't be read.
        """
        tasks = part.tasks()
        reconciled = reconcile(
            tasks,
            done,
            connection=self._connection,
            store=self.store,
            retry_failed=False,
            enqueue=enqueue,
        )
        reasons = self._reasons(tasks, reconciled) | dict(unreadable)
        labels = {task.id: task.label for task in tasks if task.id in reconciled.failed}
        return PartState(
            title=part.title,
            total=len(tasks),
            done=len(reconciled.done),
            waiting=len(reconciled.in_store),
            in_flight=len(reconciled.in_flight) + len(reconciled.enqueued),
            enqueued=len(reconciled.enqueued),
            reasons=reasons,
            unreadable=len(unreadable),
            failures=[f"{labels[task_id]}: {reasons[task_id]}" for task_id in sorted(labels)],
        )

    def _reasons(self, tasks: Sequence[Task], reconciled: Reconciled) -> dict[str, str]:
        """Why each task that is not done is not: what runs where, how failed tasks ended."""
        queued = reconciled.in_flight.union(reconciled.enqueued)
        running = self._running(reconciled)
        reasons: dict[str, str] = {}
        for task_id in {task.id for task in tasks} - reconciled.done:
            if task_id in reconciled.failed:
                reasons[task_id] = self._ending(task_id)
            elif task_id in reconciled.in_store:
                reasons[task_id] = "finished, not collected yet"
            elif task_id in running:
                reasons[task_id] = running[task_id]
            else:
                reasons[task_id] = "queued" if task_id in queued else "not enqueued"
        self._endings = {task_id: reasons[task_id] for task_id in reconciled.failed} | {
            task_id: ending for task_id, ending in self._endings.items() if task_id not in reasons
        }
        return reasons

    def _running(self, reconciled: Reconciled) -> dict[str, str]:
        if not reconciled.running:
            return {}
        progress = read_progress(self._connection, queue_name(self.store.id))
        return {task_id: _described(progress.get(task_id)) for task_id in reconciled.running}

    def _ending(self, task_id: str) -> str:
        if task_id not in self._endings:
            self._endings[task_id] = _last_word(read_events(self._connection, task_id))
        return self._endings[task_id]


def _described(progress: Progress | None) -> str:
    return f"running on {progress.host}: {progress.text}" if progress else "running"


def _last_word(events: list[Event]) -> str:
    """How a task gave up, in one line: attempts, hosts, the last word."""
    attempts = [event for event in events if event.outcome in ("failed", "crashed")]
    if not attempts:
        return "failed"
    last = attempts[-1]
    lines = last.detail.strip().splitlines() or ["no detail"]
    hosts = ", ".join(sorted({event.host or event.worker for event in attempts}))
    return f"{last.outcome} after {len(attempts)} attempts on {hosts}: {lines[-1]}"
