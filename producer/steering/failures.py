"""Failures: the tasks that were given up, each with all that happened to it."""

from collections.abc import Iterator, Sequence

from msgspec import Struct

from producer.fleet import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.kinds.registry import parts_of
from producer.steering.cancel import state_of
from producer.steering.selection import select
from shared.jobs.history import Event, read_histories

BATCH = 500
"""So many histories, each with its tracebacks, are in memory at once."""


class Failure(Struct, frozen=True, kw_only=True):
    """One task that was given up."""

    task: str
    """Its id."""
    label: str
    part: str
    """The title of its part."""
    events: tuple[Event, ...]
    """Its history, oldest first; at most the last hundred events, kept for thirty days."""

    @property
    def hosts(self) -> list[str]:
        """The machines on which it failed, sorted."""
        names = {event.host or event.worker for event in self.attempts}
        return sorted(names)

    @property
    def attempts(self) -> list[Event]:
        """The events that ended an attempt and count against the task."""
        return [event for event in self.events if event.outcome not in ("started", "handed back")]


def failures(folder: CalibFolder, fleet: Fleet, patterns: Sequence[str]) -> Iterator[list[Failure]]:
    """Yield the failed tasks, some at a time, in the order of the parts. Changes nothing.

    See `select` for `patterns`.

    Raises:
        InputError: a pattern fits nothing.
    """
    for each in select(list(parts_of(folder)), patterns):
        failed = state_of(each, fleet).failed
        tasks = [task for task in each.tasks if task.id in failed]
        for start in range(0, len(tasks), BATCH):
            batch = tasks[start : start + BATCH]
            histories = read_histories(fleet.connection, [task.id for task in batch])
            yield [
                Failure(task=task.id, label=task.label, part=each.part.title, events=tuple(events))
                for task, events in zip(batch, histories, strict=True)
            ]
