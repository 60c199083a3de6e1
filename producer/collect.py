"""Collecting a whole run: pass after pass, until all is there or nothing more will come."""

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
"""A machine that leaves bad shards only must not keep a collector busy for ever."""


@dataclass(slots=True)
class Collector:
    """Takes what is finished, enqueues what got lost, and says how far everything is."""

    ledger: Ledger
    complain: Callable[[str], None]
    """Told of each dropped shard, in one line."""
    told: Callable[[Task], None] = lambda task: None
    """Told of each shard taken in."""
    problems: int = field(default=0, init=False)
    told_unreadable: set[str] = field(default_factory=set, init=False)
    """Said once, not by every pass of a wait."""

    def collect(self) -> list[PartState]:
        """One pass over every part of the folder; another one where what came in asks for more."""
        states, more = [], False
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
        """Pass after pass; each of `checks` may raise to end the wait."""
        while True:
            started = time.monotonic()
            states = self.collect()
            show(states)
            if all(state.settled for state in states):
                return states
            for check in checks:
                check()
            # A pass over a large folder takes its time: most of a wait should be waiting.
            time.sleep(max(POLL_SECONDS, 3 * (time.monotonic() - started)))

    def write_results(self, states: Sequence[PartState]) -> list[Path]:
        """Write what is made of all that was collected; return the files to read first."""
        reasons = {task_id: why for state in states for task_id, why in state.reasons.items()}
        written = [part.write_results(reasons) for part in self.ledger.parts()]
        return [path for path in written if path is not None]


def collect_part(
    part: Part, store: ShardStore, told: Callable[[Task], None] = lambda task: None
) -> tuple[dict[str, Record], Intake]:
    """Take a part's finished shards out of the store; return the records of all that is there whole.

    What is not as it was collected does not count any more, and is among the intake's problems.
    """
    collected = part.collected(closely=True)
    for task_id in collected.damages:
        part.drop(task_id)
    intake = take_in(part.tasks(), collected.records, store, part.keep, told)
    intake.problems[:0] = collected.damages.values()
    part.summarize(collected.records)
    return collected.records, intake
