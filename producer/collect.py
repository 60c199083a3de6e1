"""Collecting a whole run: pass after pass, until all is there or nothing more will come."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from redis import Redis

from producer.collect_calibration import collect_calibration
from producer.collect_sensitivity import choose_pairs_to_verify, collect_sensitivity, write_results
from producer.folder.calib_folder import CalibFolder, RequestFile, RunFile, SensitivityFolder, read_records
from producer.folder.collected_images import collected_images
from producer.folder.intake import Intake
from producer.jobs.progress import Part, part_of
from producer.jobs.reconcile import reconcile
from shared.kinds.kind import Task
from shared.stores.store import ShardStore

POLL_SECONDS = 1.0
MAX_PROBLEMS = 50
"""A machine that leaves bad shards only must not keep a collector busy for ever."""


@dataclass(slots=True)
class Collector:
    """Takes what is finished, enqueues what got lost, and says how far everything is."""

    folder: CalibFolder
    connection: Redis
    store: ShardStore
    complain: Callable[[str], None]
    """Told of each dropped shard, in one line."""
    told: Callable[[Task], None] = lambda task: None
    """Told of each shard taken in."""
    problems: int = field(default=0, init=False)
    told_unreadable: set[str] = field(default_factory=set, init=False)
    """Said once, not by every pass of a wait."""

    def collect(self) -> list[Part]:
        """One pass over calibration and every sensitivity run of the folder."""
        run = self.folder.require_run()
        intake = collect_calibration(self.folder, run, self.store, self.told)
        parts = [self._part("calibration", run.tasks(), frozenset(self.folder.read_records()), intake)]
        card = self.folder.read_model()
        for place in self.folder.sensitivities():
            request = place.require_request()
            if card is None:
                break
            intake = collect_sensitivity(place, request, run, card, self.store, self.told)
            request = choose_pairs_to_verify(place, request, run, card)
            done = frozenset(read_records(place.records_dir))
            self._keep_samples(place, request, len(done) < len(request.tasks(run)))
            part = self._part(f"sensitivity {request.settings.id}", request.tasks(run), done, intake)
            parts.append(part)
            if part.complete:
                self.store.discard_blob(request.settings.sample_set_sha256)
        return parts

    def collect_until_settled(
        self, show: Callable[[list[Part]], None], checks: Sequence[Callable[[], None]] = ()
    ) -> list[Part]:
        """Pass after pass; each of `checks` may raise to end the wait."""
        while True:
            started = time.monotonic()
            parts = self.collect()
            show(parts)
            if all(part.settled for part in parts):
                return parts
            for check in checks:
                check()
            # A pass over a large folder takes its time: most of a wait should be waiting.
            time.sleep(max(POLL_SECONDS, 3 * (time.monotonic() - started)))

    def write_results(self, parts: Sequence[Part]) -> list[str]:
        """Write results and report of every sensitivity run that has any; return the reports' paths."""
        card = self.folder.read_model()
        reports = []
        for place in self.folder.sensitivities():
            reasons = {task_id: why for part in parts for task_id, why in part.reasons.items()}
            if card is not None and write_results(self.folder, place, card, reasons):
                reports.append(str(place.report_path))
        return reports

    def _keep_samples(self, place: SensitivityFolder, request: RequestFile, needed: bool) -> None:
        """A wiped Redis lost the sample set too, and without it no worker can serve the tasks."""
        digest = request.settings.sample_set_sha256
        if needed and not self.store.has_blob(digest):
            self.store.put_blob(digest, place.samples_path.read_bytes())

    def _part(self, title: str, tasks: Sequence[Task], done: frozenset[str], intake: Intake) -> Part:
        for problem in intake.problems:
            self.complain(problem)
        for line in {*intake.unreadable.values()} - self.told_unreadable:
            self.complain(f"{line}; mend that and collect again, the rest goes on")
            self.told_unreadable.add(line)
        self.problems += len(intake.problems)
        reconciled = reconcile(
            tasks,
            done,
            connection=self.connection,
            store=self.store,
            retry_failed=False,
            enqueue=self.problems <= MAX_PROBLEMS,
        )
        return part_of(title, list(tasks), reconciled, self.connection, self.store.id, intake.unreadable)


def survey(folder: CalibFolder, connection: Redis, store: ShardStore) -> list[Part]:
    """How far everything is, changing nothing."""
    run: RunFile = folder.require_run()
    groups: list[tuple[str, Sequence[Task], frozenset[str]]] = [
        ("calibration", run.tasks(), frozenset(collected_images(folder, run)[0]))
    ]
    for place in folder.sensitivities():
        request = place.require_request()
        done = frozenset(read_records(place.records_dir))
        groups.append((f"sensitivity {request.settings.id}", request.tasks(run), done))
    parts = []
    for title, tasks, done in groups:
        reconciled = reconcile(
            tasks, done, connection=connection, store=store, retry_failed=False, enqueue=False
        )
        parts.append(part_of(title, list(tasks), reconciled, connection, store.id, {}))
    return parts
