"""How far each part of a run is: from the folder, the store and the queue."""

from collections.abc import Mapping
from dataclasses import dataclass

from redis import Redis

from producer.jobs.reconcile import Reconciled
from shared.jobs.history import Event, read_events, read_progress
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.kinds.kind import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A calibration or one sensitivity run: how many of its tasks are where."""

    title: str
    total: int
    done: int
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
    unreadable: int
    """Finished, but their files in the store can't be read."""

    @property
    def complete(self) -> bool:
        """Everything asked for is collected."""
        return self.done == self.total

    @property
    def settled(self) -> bool:
        """Nothing more will come by itself."""
        return self.done + len(self.failures) + self.unreadable == self.total


def part_of(
    title: str,
    tasks: list[Task],
    reconciled: Reconciled,
    connection: Redis,
    store_id: str,
    unreadable: Mapping[str, str],
) -> Part:
    """Describe a part; the reasons name what runs where, and how failed tasks ended.

    `unreadable` says why the files of some finished tasks can't be read.
    """
    progress = read_progress(connection, queue_name(store_id))
    started = TaskQueue(queue_name(store_id), connection).in_flight().started
    labels = {task.id: task.label for task in tasks}
    reasons: dict[str, str] = {}
    for task_id in labels.keys() - reconciled.done:
        if task_id in reconciled.failed:
            reasons[task_id] = _ending(read_events(connection, task_id))
        elif task_id in unreadable:
            reasons[task_id] = unreadable[task_id]
        elif task_id in reconciled.in_store:
            reasons[task_id] = "finished, not collected yet"
        elif task_id in started:
            running = progress.get(task_id)
            reasons[task_id] = f"running on {running.host}: {running.text}" if running else "running"
        elif task_id in reconciled.in_flight or task_id in reconciled.enqueued:
            reasons[task_id] = "queued"
        else:
            reasons[task_id] = "not enqueued"
    return Part(
        title=title,
        total=len(tasks),
        done=len(reconciled.done),
        waiting=len(reconciled.in_store),
        in_flight=len(reconciled.in_flight) + len(reconciled.enqueued),
        enqueued=len(reconciled.enqueued),
        reasons=reasons,
        unreadable=len(unreadable),
        failures=[f"{labels[task_id]}: {reasons[task_id]}" for task_id in sorted(reconciled.failed)],
    )


def _ending(events: list[Event]) -> str:
    """How a task gave up, in one line: attempts, hosts, the last word."""
    attempts = [event for event in events if event.outcome in ("failed", "crashed")]
    if not attempts:
        return "failed"
    last = attempts[-1]
    lines = last.detail.strip().splitlines() or ["no detail"]
    hosts = ", ".join(sorted({event.host or event.worker for event in attempts}))
    return f"{last.outcome} after {len(attempts)} attempts on {hosts}: {lines[-1]}"
