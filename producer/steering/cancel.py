"""Cancel tasks: nobody works on them any more, until they are asked for again."""

from collections.abc import Sequence
from dataclasses import dataclass

from producer.fleet import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.jobs.reconcile import Reconciled, reconcile
from producer.kinds.registry import parts_of
from producer.steering.selection import Selected, select
from shared.jobs.task_queue import TaskQueue, queue_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """What became of the tasks that were meant."""

    cancelled: int
    queued: int
    """Of those, how many waited for a worker."""
    running: int
    """Of those, how many ran; their workers drop them at the next check."""
    before: int
    """Tasks that were cancelled before."""
    finished: int
    """Tasks that are finished: what is done stays."""
    failed: int


def cancel(folder: CalibFolder, fleet: Fleet, patterns: Sequence[str]) -> Cancelled:
    """Cancel the tasks that are neither finished nor failed; see `select` for `patterns`.

    The folder notes it first: from then on no command enqueues them again.

    Raises:
        InputError: a pattern fits nothing.
    """
    with folder.locked("cancel"):
        selected = select(list(parts_of(folder)), patterns)
        states = [state_of(each, fleet) for each in selected]
        before = folder.cancelled.read()
        wanted: set[str] = set()
        for each, state in zip(selected, states, strict=True):
            ended = state.done | state.in_store | state.failed
            wanted.update({task.id for task in each.tasks} - ended)
        folder.cancelled.add(wanted)
        withdrawn = TaskQueue(queue_name(fleet.store.id), fleet.connection).withdraw(sorted(wanted))
    return Cancelled(
        cancelled=len(wanted - before),
        queued=withdrawn.queued,
        running=withdrawn.running,
        before=len(wanted & before),
        finished=sum(len(state.done | state.in_store) for state in states),
        failed=sum(len(state.failed) for state in states),
    )


def state_of(selected: Selected, fleet: Fleet) -> Reconciled:
    """Return in which states the selected tasks are. Nothing is enqueued."""
    return reconcile(
        selected.tasks,
        selected.part.glance(),
        connection=fleet.connection,
        store=fleet.store,
        retry_failed=False,
        enqueue=False,
    )
