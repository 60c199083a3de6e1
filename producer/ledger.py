"""The ledger knows which tasks of a run are wanted, queued, running, finished, collected or failed, and why.

All commands get the state of a run from here. Unchanged files of the folder are not read twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from redis import Redis

from producer.folder.calib_folder import CalibFolder
from producer.jobs.reconcile import Reconciled, reconcile
from producer.kinds.part import Part
from producer.kinds.registry import parts_of
from shared.jobs.history import Event, Progress, read_histories, read_progress
from shared.jobs.task_queue import queue_name
from shared.kinds.kind import Task
from shared.kinds.registry import kind_of
from shared.stores.store import ShardStore

CANCELLED = "cancelled"
"""The reason why a cancelled task is not done."""
FAILED = "failed"
"""The same of a failed task of which nothing more is known."""
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class PartState:
    """How many tasks of a part are in which state."""

    title: str
    kind: str
    """Name of the kind of its tasks; "unknown" if there are none."""
    total: int
    done: int
    """Tasks whose shard is collected."""
    waiting: int
    """Tasks that are finished but not collected."""
    in_flight: int
    """Tasks that are queued or running."""
    running: int
    """Those of them that run."""
    enqueued: int
    """Tasks that this command has enqueued."""
    reasons: dict[str, str]
    """By task id, why the task is not done."""
    failures: list[str]
    """One line for each failed task; for the first ones only, where no more were asked for."""
    failed: int
    """Tasks that failed in every attempt."""
    unreadable: int = 0
    """Finished tasks whose files in the store can't be read."""
    given_up: int = 0
    """Tasks that are not enqueued again, because their shards were bad too often."""
    cancelled: int = 0
    """Tasks that are not enqueued again until somebody asks for them."""
    trouble: str | None = None
    """Why none of the missing tasks can be enqueued; empty if that passes by itself."""

    @property
    def complete(self) -> bool:
        """Whether everything is collected."""
        return self.done == self.total and not self.trouble

    @property
    def settled(self) -> bool:
        """Whether waiting will not help: each task is collected, failed or cancelled, or can't be had."""
        if self.trouble:
            return self.waiting + self.in_flight == 0
        ended = self.failed + self.unreadable + self.given_up + self.cancelled
        return self.done + ended == self.total


class Ledger:
    """Reads folder, store and queue. Only `reconcile` changes anything: it enqueues missing tasks."""

    def __init__(self, folder: CalibFolder, connection: Redis, store: ShardStore) -> None:
        self.folder = folder
        self.store = store
        self._connection = connection
        self._endings: dict[str, str] = {}
        """By task id, how each failed task ended."""

    def parts(self) -> Iterator[Part]:
        """Return all parts of the folder."""
        return parts_of(self.folder)

    def survey(self, told: int | None = None) -> list[PartState]:
        """Return the state of all parts without changing anything, by the names of the records alone.

        Of each part at most `told` failures are read and described; None for all.
        """
        return [
            self.reconcile(part, part.glance(), enqueue=False, trouble=part.trouble, told=told)
            for part in self.parts()
        ]

    def reconcile(
        self,
        part: Part,
        done: frozenset[str],
        *,
        enqueue: bool,
        unreadable: Mapping[str, str] = _NONE,
        given_up: Mapping[str, str] = _NONE,
        trouble: str | None = None,
        told: int | None = None,
    ) -> PartState:
        """Return the state of a part.

        Args:
            part: the part.
            done: ids of collected tasks.
            enqueue: whether to enqueue tasks that are neither done, nor queued, nor running.
            unreadable: by task id, why the files of some finished tasks can't be read.
            given_up: by task id, why some tasks are not to be enqueued again.
            trouble: why nothing is enqueued; empty if that passes by itself.
            told: how many failures to describe; None for all.
        """
        tasks = part.tasks()
        unwanted = dict.fromkeys(self.folder.cancelled.read(), CANCELLED)
        reconciled = reconcile(
            tasks,
            done,
            connection=self._connection,
            store=self.store,
            retry_failed=False,
            enqueue=enqueue,
            leave=given_up.keys() | unwanted.keys(),
            folder=self.folder.root,
        )
        left = {task_id: unwanted.get(task_id) or given_up[task_id] for task_id in reconciled.left}
        cancelled = len(reconciled.left & unwanted.keys())
        failed = sorted(reconciled.failed)[:told]
        reasons = self._reasons(tasks, reconciled, failed) | left | dict(unreadable)
        labels = {task.id: task.label for task in tasks if task.id in reconciled.failed}
        return PartState(
            title=part.title,
            kind=kind_of(tasks[0]).name if tasks else "unknown",
            total=len(tasks),
            done=len(reconciled.done),
            waiting=len(reconciled.in_store),
            in_flight=len(reconciled.in_flight) + len(reconciled.enqueued),
            running=len(reconciled.running),
            enqueued=len(reconciled.enqueued),
            reasons=reasons,
            unreadable=len(unreadable),
            given_up=len(left) - cancelled,
            cancelled=cancelled,
            trouble=trouble,
            failures=[f"{labels[task_id]}: {reasons[task_id]}" for task_id in failed],
            failed=len(reconciled.failed),
        )

    def _reasons(self, tasks: Sequence[Task], reconciled: Reconciled, told: Sequence[str]) -> dict[str, str]:
        """Return, by task id, why each missing task is not done: how it ended, of those failed in `told`."""
        queued = reconciled.in_flight.union(reconciled.enqueued)
        running = self._running(reconciled)
        self._read_endings(told)
        reasons: dict[str, str] = {}
        for task_id in {task.id for task in tasks} - reconciled.done:
            if task_id in reconciled.failed:
                reasons[task_id] = self._endings.get(task_id, FAILED)
            elif task_id in reconciled.in_store:
                reasons[task_id] = "finished, not collected yet"
            elif task_id in running:
                reasons[task_id] = running[task_id]
            else:
                reasons[task_id] = "queued" if task_id in queued else "not enqueued"
        self._endings = {task_id: reasons[task_id] for task_id in told} | {
            task_id: ending for task_id, ending in self._endings.items() if task_id not in reasons
        }
        return reasons

    def _running(self, reconciled: Reconciled) -> dict[str, str]:
        if not reconciled.running:
            return {}
        progress = read_progress(self._connection, queue_name(self.store.id))
        return {task_id: _described(progress.get(task_id)) for task_id in reconciled.running}

    def _read_endings(self, failed: Sequence[str]) -> None:
        new = [task_id for task_id in failed if task_id not in self._endings]
        histories = read_histories(self._connection, new)
        self._endings |= dict(zip(new, map(_last_word, histories), strict=True))


def _described(progress: Progress | None) -> str:
    return f"running on {progress.host}: {progress.text}" if progress else "running"


def _last_word(events: list[Event]) -> str:
    """Return in one line how a task failed: attempts, hosts and the last error."""
    attempts = [event for event in events if event.outcome not in ("started", "handed back")]
    if not attempts:
        return FAILED
    last = attempts[-1]
    lines = last.detail.strip().splitlines() or ["no detail"]
    hosts = ", ".join(sorted({event.host or event.worker for event in attempts}))
    return f"{last.outcome} after {len(attempts)} attempts on {hosts}: {lines[-1]}"
