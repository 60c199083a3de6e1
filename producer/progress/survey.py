"""Looks at folder, queue, store and workers, and changes nothing."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from producer.fleet import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.jobs.unserved import strangers, unserved
from producer.jobs.who import Present, who_is_there
from producer.kinds.part import Part
from producer.kinds.registry import parts_of
from producer.ledger import Ledger, PartState
from producer.progress.pace import seconds_by_host, seconds_left, tasks_per_hour, with_timed_hosts
from producer.progress.status import PartStatus, RunStatus, StoreStatus, WorkerStatus
from producer.steering.halt import halts
from producer.steering.room import crowding
from shared.costs import TaskSize, cost_of
from shared.errors import ShardCorruptError
from shared.jobs.asides import kind_of_job
from shared.jobs.history import utc_now
from shared.jobs.running import RunningJob
from shared.jobs.workers import WorkerInfo, speeds_by_host
from shared.kinds.calibration import CalibrationTask
from shared.kinds.kind import Task
from shared.kinds.registry import kind_name
from shared.models import model_spec
from shared.stores.records import Record
from shared.stores.relay_store import RelayStore
from shared.stores.store import ShardStore

LATEST = 200
"""So many records tell how fast a part goes: Macs come and go, and get warm."""
ASKED_FOR = 16
"""So many records are read from the store while none is collected."""


def look_at_run(folder: CalibFolder, ledger: Ledger, fleet: Fleet, *, told: int | None = None) -> RunStatus:
    """Return the state of a run, by what its folder, its Redis and its store say.

    What is collected is counted by the names of its records: `producer collect` looks at the files as well.
    Of each part at most `told` failures are described; None for all.
    """
    run = folder.require_run()
    states = ledger.survey(told)
    present = who_is_there(fleet.connection, fleet.store.id)
    parts = estimate([*ledger.parts()], states, present, fleet.store)
    store = StoreStatus(label=fleet.store.label)
    if isinstance(fleet.store, RelayStore):
        used, limit = fleet.store.used_bytes, fleet.store.limit_bytes
        store = StoreStatus(label=fleet.store.label, used_bytes=used, limit_bytes=limit)
    notes = [state.trouble for state in states if state.trouble]
    notes += [*halts(fleet), *crowding(fleet)]
    notes += [*strangers(present.workers), *unserved(fleet.connection, fleet.store.id, present.workers)]
    return RunStatus(
        at=utc_now(),
        folder=str(folder.root),
        run=run.settings.id,
        model=run.settings.model,
        redis=True,
        parts=parts,
        workers=[_worker(worker, present.jobs.get(worker.name)) for worker in present.workers],
        store=store,
        queue_age_seconds=present.queue_age,
        seconds_left=time_left(parts),
        failures=[failure for state in states for failure in state.failures],
        notes=notes,
    )


def look_at_folder(folder: CalibFolder, note: str) -> RunStatus:
    """Return what a folder knows without a Redis: what is wanted, what is collected, and how fast it went."""
    run = folder.require_run()
    parts = []
    for part in parts_of(folder):
        tasks = part.tasks()
        done = part.glance()
        parts.append(
            PartStatus(
                title=part.title,
                kind=kind_name(tasks[0].id) if tasks else "unknown",
                wanted=len(tasks),
                queued=0,
                running=0,
                finished=0,
                collected=sum(task.id in done for task in tasks),
                failed=0,
                seconds_by_host=_seconds(part, None),
            )
        )
    return RunStatus(
        at=utc_now(),
        folder=str(folder.root),
        run=run.settings.id,
        model=run.settings.model,
        redis=False,
        parts=parts,
        workers=[],
        notes=[note],
    )


def estimate(
    parts: Sequence[Part], states: Sequence[PartState], present: Present, store: ShardStore | None
) -> list[PartStatus]:
    """Return the state of each part with its rate and the time that it still takes.

    While nothing of a part is collected, some records are read from the `store`; with None they are not.
    """
    seconds = [_seconds(part, store) for part in parts]
    speeds = speeds_by_host(present.workers)
    rates = [
        tasks_per_hour(with_timed_hosts(each, speeds, _flops(part)), able_workers(part, present))
        for part, each in zip(parts, seconds, strict=True)
    ]
    left = seconds_left([state.in_flight for state in states], rates)
    return [
        PartStatus(
            title=state.title,
            kind=state.kind,
            wanted=state.total,
            queued=state.in_flight - state.running,
            running=state.running,
            finished=state.waiting,
            collected=state.done,
            failed=state.failed,
            cancelled=state.cancelled,
            tasks_per_hour=rate,
            seconds_left=time,
            seconds_by_host=by_host,
        )
        for state, rate, time, by_host in zip(states, rates, left, seconds, strict=True)
    ]


def able_workers(part: Part, present: Present) -> Counter[str]:
    """Return how many workers there are, by host, that have not set a part's tasks aside."""
    tasks = part.tasks()
    kind = kind_of_job(tasks[0].id) if tasks else ""
    unable = {entry.start_id for entry in present.asides if entry.kind == kind}
    return Counter(
        worker.host
        for worker in present.workers
        if worker.start_id is not None and worker.start_id not in unable
    )


def time_left(parts: Sequence[PartStatus]) -> float | None:
    """Return how many seconds all queued and running tasks take; None if that is not known of each part."""
    times = [part.seconds_left for part in parts if part.left]
    known = [time for time in times if time is not None]
    return max(known) if known and len(known) == len(times) else None


def _seconds(part: Part, store: ShardStore | None) -> dict[str, float]:
    tasks = part.tasks()
    if not tasks or part.records is None:
        return {}
    latest = part.records.latest(LATEST, kind_of_job(tasks[0].id))
    if not latest and store is not None:
        latest = _waiting_records(store, tasks[0])
    return seconds_by_host(latest)


def _flops(part: Part) -> float | None:
    """Return the floating point operations of a task's forward passes, where the task alone tells them."""
    first = next(iter(part.tasks()), None)
    if not isinstance(first, CalibrationTask):
        return None
    model = model_spec(first.run.model)
    cost = cost_of("calibration", model, TaskSize.of(first.run, model))
    return cost.forward_passes * cost.forward_flops


def _waiting_records(store: ShardStore, task: Task) -> list[Record]:
    prefix = kind_of_job(task.id)
    ids = sorted(task_id for task_id in store.record_ids(task.namespace) if task_id.startswith(prefix))
    records = []
    for task_id in ids[:ASKED_FOR]:
        with suppress(ShardCorruptError):
            records.append(store.record(task.namespace, task_id))
    return records


def _worker(worker: WorkerInfo, job: RunningJob | None) -> WorkerStatus:
    return WorkerStatus(
        name=worker.name,
        host=worker.host,
        state=worker.state,
        task=job.label if job else None,
        step=(job.step or None) if job else None,
        task_seconds=job.seconds if job else None,
        lease_seconds=job.lease_seconds if job else None,
        tasks_done=worker.tally.tasks,
        tasks_per_hour=worker.tally.tasks_per_hour,
        failed=worker.tally.failed,
        leases_lost=worker.tally.leases_lost,
        seconds_silent=worker.seconds_silent,
        versions=worker.versions,
    )
