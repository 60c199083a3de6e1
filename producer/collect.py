"""Collect a run, in one pass or in many."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from producer.folder.intake import Intake, take_in
from producer.kinds.part import Part
from producer.ledger import Ledger, PartState
from shared.kinds.kind import Task
from shared.stores.records import Record
from shared.stores.store import ShardStore

POLL_SECONDS = 1.0
MAX_PROBLEMS = 50
"""After so many dropped shards nothing is enqueued again: a broken machine may produce bad ones for ever."""


@dataclass(slots=True)
class Collector:
    """Fetches finished shards, enqueues lost tasks again, and reports the progress."""

    ledger: Ledger
    complain: Callable[[str], None]
    """Called with one line about each dropped shard."""
    told: Callable[[Task], None] = lambda task: None
    """Called with the task of each collected shard."""
    problems: int = field(default=0, init=False)
    told_unreadable: set[str] = field(default_factory=set, init=False)
    """Messages about unreadable files that were given already."""

    def collect(self) -> list[PartState]:
        """Make one pass over all parts of the folder, and another if collected work leads to new tasks."""
        states, more = [], False
        self.ledger.store.recount()
        for part in self.ledger.parts():
            state, asks = self._collect_part(part)
            states.append(state)
            more = more or asks
        return self.collect() if more else states

    def _collect_part(self, part: Part) -> tuple[PartState, bool]:
        collected, intake = collect_part(part, self.ledger.store, self.told)
        for problem in intake.problems:
            self.complain(problem)
        for line in {*intake.unreadable.values()} - self.told_unreadable:
            self.complain(f"{line}; mend that and collect again, the rest goes on")
            self.told_unreadable.add(line)
        self.problems += len(intake.problems)
        if len(collected) < len(part.tasks()):
            part.supply(self.ledger.store)
        enqueue = self.problems <= MAX_PROBLEMS
        state = self.ledger.reconcile(
            part, frozenset(collected), enqueue=enqueue, unreadable=intake.unreadable
        )
        if state.complete:
            part.clear_away(self.ledger.store)
        return state, part.ask_for_more(collected)

    def collect_until_settled(
        self, show: Callable[[list[PartState]], None], checks: Sequence[Callable[[], None]] = ()
    ) -> list[PartState]:
        """Make passes until everything is collected or has failed. Each of `checks` may raise to stop."""
        while True:
            started = time.monotonic()
            states = self.collect()
            show(states)
            if all(state.settled for state in states):
                return states
            for check in checks:
                check()
            # A pass over a large folder takes long: wait three times as long, to leave the core to others.
            time.sleep(max(POLL_SECONDS, 3 * (time.monotonic() - started)))

    def write_results(self, states: Sequence[PartState]) -> list[Path]:
        """Write the results of everything that was collected; return the paths of the reports."""
        reasons = {task_id: why for state in states for task_id, why in state.reasons.items()}
        written = [part.write_results(reasons) for part in self.ledger.parts()]
        return [path for path in written if path is not None]


def collect_part(
    part: Part, store: ShardStore, told: Callable[[Task], None] = lambda task: None
) -> tuple[dict[str, Record], Intake]:
    """Move a part's finished shards from the store to the folder; return the records of all intact shards.

    Collected shards that were damaged since count as missing, and are listed among the intake's problems.
    """
    collected = part.collected(closely=True)
    for task_id in collected.damages:
        part.drop(task_id)
    intake = take_in(part.tasks(), collected.records, store, part.keep, told)
    intake.problems[:0] = collected.damages.values()
    part.summarize(collected.records)
    return collected.records, intake
