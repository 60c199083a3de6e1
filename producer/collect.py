"""Collect a run, in one pass or in many."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from producer.drops import Drops
from producer.folder.intake import Dropped, Intake, take_in
from producer.kinds.part import Part
from producer.ledger import Ledger, PartState
from producer.report.write import write_report
from shared.errors import (
    BitfleetError,
    FolderLostError,
    StoreFullError,
    StoreTroubleError,
    WrongStoreError,
)
from shared.kinds.kind import Task
from shared.outage import Outage
from shared.stores.records import Record
from shared.stores.store import ShardStore

POLL_SECONDS = 1.0


@dataclass(slots=True)
class Collector:
    """Fetches finished shards, enqueues lost tasks again, and reports the progress."""

    ledger: Ledger
    complain: Callable[[str], None]
    """Called with one line about each dropped shard."""
    told: Callable[[Task], None] = lambda task: None
    """Called with the task of each collected shard."""
    drops: Drops = field(default_factory=Drops, init=False)
    """What was dropped since the command has started."""
    without_results: int = field(default=0, init=False)
    """How many parts' results could not be written."""
    _told: set[str] = field(default_factory=set, init=False)
    """Messages about lasting trouble that were given already."""

    def collect(self) -> list[PartState]:
        """Make one pass over all parts of the folder, and another if collected work leads to new tasks.

        The folder is locked during a pass, and free between two, so that commands take turns.
        """
        with self.ledger.folder.locked("collect"):
            return self._pass()

    def _pass(self) -> list[PartState]:
        states, more = [], False
        namespaces: set[str] = set()
        self.ledger.store.recount()
        for part in self.ledger.parts():
            namespaces.update(task.namespace for task in part.tasks()[:1])
            state, asks = self._collect_part(part)
            states.append(state)
            more = more or asks
        # Now also what the count itself has forgotten of this folder.
        self.ledger.store.recount(namespaces)
        return self._pass() if more else states

    def _collect_part(self, part: Part) -> tuple[PartState, bool]:
        collected, intake = collect_part(part, self.ledger.store, self.told, self.ledger.folder.lock.check)
        for problem in intake.problems:
            self.complain(problem)
        for line in intake.unreadable.values():
            self._complain_once(f"{line}; mend that and collect again, the rest goes on")
        self.drops.add(intake.dropped)
        trouble = part.trouble
        if trouble:
            self._complain_once(f"{trouble}; the rest goes on")
        elif len(collected) < len(part.tasks()):
            trouble = self._supply(part)
        state = self.ledger.reconcile(
            part,
            frozenset(collected),
            enqueue=trouble is None,
            unreadable=intake.unreadable,
            given_up=self.drops.given_up,
            trouble=trouble,
        )
        if state.complete:
            part.clear_away(self.ledger.store)
        return state, part.ask_for_more(collected)

    def _supply(self, part: Part) -> str | None:
        """Give workers what they need for a part; return why that can't be done, without stopping others."""
        try:
            part.supply(self.ledger.store)
        except StoreFullError as error:
            self._complain_once(f"{part.title}: nothing is enqueued yet: {error}")
            # Waiting helps.
            return ""
        except (StoreTroubleError, WrongStoreError):
            raise
        except (BitfleetError, OSError) as error:
            line = f"{part.title}: nothing is enqueued: {error}"
            self._complain_once(f"{line}; the rest goes on")
            return line
        return None

    def _complain_once(self, line: str) -> None:
        if line not in self._told:
            self.complain(line)
            self._told.add(line)

    def collect_until_settled(
        self, show: Callable[[list[PartState]], None], checks: Sequence[Callable[[], None]] = ()
    ) -> list[PartState]:
        """Make passes until everything is collected or has failed. Each of `checks` may raise to stop.

        A store that goes away, as a share that is not mounted any more, is waited for.
        """
        outage = Outage(self.ledger.store.label, self.complain)
        while True:
            started = time.monotonic()
            try:
                states = self.collect()
            except FolderLostError as error:
                self.complain(str(error))
                continue
            except (StoreTroubleError, WrongStoreError) as error:
                outage.failed(str(error))
            else:
                outage.answered()
                show(states)
                if all(state.settled for state in states):
                    return states
            for check in checks:
                check()
            # A pass over a large folder takes long: wait three times as long, to leave the core to others.
            time.sleep(max(POLL_SECONDS, 3 * (time.monotonic() - started)))

    def write_results(self, states: Sequence[PartState]) -> Path:
        """Write the results of everything that was collected, and the report; return its path.

        A part whose results can't be written is told of, and counted in `without_results`.
        """
        reasons = {task_id: why for state in states for task_id, why in state.reasons.items()}
        with self.ledger.folder.locked("collect"):
            for part in self.ledger.parts():
                try:
                    part.write_results(reasons)
                except BitfleetError as error:
                    self.complain(f"{part.title}: no results were written: {error}")
                    self.without_results += 1
            return write_report(self.ledger.folder)


def collect_part(
    part: Part,
    store: ShardStore,
    told: Callable[[Task], None] = lambda task: None,
    check: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Record], Intake]:
    """Move a part's finished shards from the store to the folder; return the records of all intact shards.

    Collected shards that were damaged since count as missing, and are listed among the intake's problems.
    `check` is called before anything is written, and may raise to prevent that.
    """

    def keep(record: Record, shard: bytes) -> None:
        check()
        part.keep(record, shard)

    collected = part.collected(closely=True)
    for task_id in collected.damages:
        part.drop(task_id)
    intake = take_in(part.tasks(), collected.records, store, keep, told)
    intake.problems[:0] = collected.damages.values()
    intake.dropped[:0] = [
        Dropped(task_id, "this folder", "missing or altered", line)
        for task_id, line in collected.damages.items()
    ]
    check()
    part.summarize(collected.records)
    return collected.records, intake
