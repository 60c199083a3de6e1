"""What a worker process keeps between jobs: the model and the engine."""

import hashlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis

from shared.costs import TaskSize, cost_of, peak_bytes
from shared.errors import WrongStoreError
from shared.jobs.history import utc_now
from shared.kinds.kind import Task
from shared.kinds.registry import KINDS, kind_of
from shared.layout.sample_set import SampleSet
from shared.models import model_spec
from shared.runs import RunSettings, SensitivitySettings
from shared.stores.records import Record
from shared.stores.store import ShardStore
from worker.jobs.job_context import JobContext, NoRoomError
from worker.kinds.lent import EngineSlot, Lent
from worker.kinds.registry import run_task
from worker.service.blas import use_fast_blas
from worker.service.task_folders import TaskFolders

if TYPE_CHECKING:
    from worker.families.family import Family
    from worker.service.canary_votes import Canary

logger = logging.getLogger("bitfleet.worker")

RELAY_POLL_SECONDS = 2.0
MAX_KEPT = 2
"""Finished shards, of at most 64 MB each, that may wait in memory for room in the store."""
IDLE_SECONDS = 300.0
"""Seconds without a job after which the model's memory is freed: the Mac's owner may need it."""


class Runtime:
    """Runs tasks in the main thread. MLX is imported with the first job, not before."""

    def __init__(
        self,
        *,
        store: ShardStore,
        host: str,
        worker: str,
        cache_dir: Path,
        checkpoint: Path | None = None,
        calib_dir: Path | None = None,
        memory_limit: int | None = None,
        workers_here: int = 1,
        connection: Redis | None = None,
        canary_tolerance: float | None = None,
    ) -> None:
        """`connection` is where the canaries of a run are compared; without one they are not."""
        self._store = store
        self._host = host
        self._worker = worker
        self._cache_dir = cache_dir
        self._task_folders = TaskFolders(cache_dir)
        self._checkpoint = checkpoint
        self._calib_dir = calib_dir
        self._memory_limit = memory_limit
        self._workers_here = workers_here
        self._connection = connection
        self._canary_tolerance = canary_tolerance
        self._agreed: set[str] = set()
        """Runs whose canary was compared."""
        self._unproven: dict[str, Canary] = {}
        """Canaries of runs of which no task is finished here yet, by run id."""
        self._timed = ("", 0)
        """Model and image size of which a pass was timed."""
        self._model: tuple[str, Family] | None = None
        self._engine = EngineSlot()
        self._kept: dict[str, tuple[Record, bytes]] = {}
        """By task id, what found no room in the store yet."""
        self._used = 0.0
        """When the model was last used, by the monotonic clock."""

    @property
    def functions(self) -> dict[str, Any]:
        """The functions that jobs may name, all of them `run`."""
        return dict.fromkeys(KINDS, self.run)

    def run(self, task: Task, context: JobContext) -> dict[str, Any]:
        """Run one task and leave its shard and record in the store."""
        self._check(task)
        if self._store.has_record(task.namespace, task.id):
            return {"outcome": "exists"}
        try:
            if task.id in self._kept:
                return self._leave(*self._kept[task.id], context)
            return self._run(task, context)
        finally:
            self._used = time.monotonic()

    def rest(self) -> None:
        """Free the model's memory after a while without a job. Called by the main thread."""
        if self._model is None or time.monotonic() - self._used < IDLE_SECONDS:
            return
        import gc

        import mlx.core as mx

        logger.info("idle for %.0f s: giving back the memory of the model", time.monotonic() - self._used)
        self._model = None
        self._engine.clear()
        gc.collect()
        mx.clear_cache()

    def _run(self, task: Task, context: JobContext) -> dict[str, Any]:
        started = time.monotonic()
        context.check("loading the model")
        model = self._model_of(task)
        self._join_run(task, model, context)
        shard = self._run_task(task, model, context)
        record = self._record(task, shard, model.fingerprint, time.monotonic() - started)
        return self._leave(record, shard, context)

    def _leave(self, record: Record, shard: bytes, context: JobContext) -> dict[str, Any]:
        context.confirm()
        outcome = self._put(record, shard, context)
        self._note_work(record.task.run)
        self._task_folders.remove(record.id, record.fingerprint)
        return {"outcome": outcome, "seconds": record.seconds, "bytes": record.size}

    def _check(self, task: Task) -> None:
        if task.store_id != self._store.id:
            raise WrongStoreError(
                f"{task.label} belongs into store {task.store_id}, this worker has {self._store.label}"
            )

    def _model_of(self, task: Task) -> "Family":
        if self._model is None:
            use_fast_blas(self._workers_here)
        self._require_memory(task)
        from worker.engine.limits import apply_limits
        from worker.families.registry import load_family

        run = task.run
        # Steps, prompts and seeds may change without loading anything again.
        key = (
            f"{run.model} {run.checkpoint_sha256} {run.shift} {run.use_t5} {run.precision} "
            f"{run.reference} {run.guidance}"
        )
        if self._model is None or self._model[0] != key:
            self._model = None
            self._engine.clear()
            logger.info("loading %s", run.model)
            model = load_family(run, self._checkpoint, ("transformer",))
            self._model = (key, model)
        # Set each time, since DiffusionKit's T5 sets a limit of its own.
        apply_limits(self._memory_share())
        return self._model[1]

    def _require_memory(self, task: Task) -> None:
        """Before anything is loaded, check that the memory suffices for tasks of this kind, by estimate."""
        import mlx.core as mx

        from worker.engine.limits import require_memory

        kind, spec = kind_of(task), model_spec(task.run.model)
        size = TaskSize.of(task.run, spec, fused_attention=mx.metal.is_available())
        needed = peak_bytes(kind.name, spec, size)
        require_memory(f"{spec.id} for {kind.tasks}", needed, self._memory_share())

    def _join_run(self, task: Task, model: "Family", context: JobContext) -> None:
        """Before the first task of a run here: is this machine like the others, and how fast is it?"""
        self._compare_canary(task.run, model, context)
        self._time_pass(task, model, context)

    def _compare_canary(self, run: RunSettings, model: "Family", context: JobContext) -> None:
        """Compare this machine's canary with the others', when it joins a run."""
        if self._connection is None or run.id in self._agreed:
            return
        from worker.service.canary import measure_canary
        from worker.service.canary_votes import Canary, compare_with_others
        from worker.service.machine import versions

        context.check("measuring the canary")
        canary = Canary(
            fingerprint=model.fingerprint,
            host=self._host,
            worker=self._worker,
            versions=versions(),
            output=measure_canary(model, run).tolist(),
        )
        difference = compare_with_others(self._connection, run, canary, self._canary_tolerance)
        logger.info("run %s: the canary differs by at most %.2g from those that agree", run.id, difference)
        self._agreed.add(run.id)
        self._unproven[run.id] = canary

    def _time_pass(self, task: Task, model: "Family", context: JobContext) -> None:
        """Tell how fast this machine is, once for a model, with a pass that the task can hold anyhow."""
        run, spec = task.run, model_spec(task.run.model)
        size = TaskSize.of(run, spec)
        try:
            cost = cost_of(kind_of(task).name, spec, size)
        except KeyError:
            return
        if not cost.forward_passes or self._timed == (spec.id, run.image_size):
            return
        from worker.service.canary import time_pass

        context.check("timing a forward pass")
        seconds = time_pass(model, run, size.text_tokens)
        self._timed = spec.id, run.image_size
        logger.info("a forward pass of %s at %d px takes %.3g s", spec.id, run.image_size, seconds)
        context.tell_speed(cost.forward_flops / max(seconds, 1e-6))

    def _note_work(self, run: RunSettings) -> None:
        """After the first task of a run, let this machine's canary count for good."""
        canary = self._unproven.pop(run.id, None)
        if canary is None or self._connection is None:
            return
        from worker.service.canary_votes import note_work

        note_work(self._connection, run, canary)

    def _run_task(self, task: Task, model: "Family", context: JobContext) -> bytes:
        def samples(sensitivity: SensitivitySettings) -> SampleSet:
            from worker.service.sample_cache import fetch_samples

            context.check("fetching samples")
            return fetch_samples(sensitivity, self._store, self._cache_dir, self._calib_dir)

        lent = Lent(
            family=model,
            check=context.check,
            samples=samples,
            blob=self._store.blob,
            memory_share=self._memory_share(),
            engine_slot=self._engine,
            task_folder=self._task_folders.of(task.id, model.fingerprint),
        )
        return run_task(task, lent)

    def _memory_share(self) -> int:
        """Return this worker's share of the memory limit, in bytes: workers of one machine divide it."""
        from worker.engine.limits import default_memory_limit

        if self._memory_limit is None:
            # Asked once: what Linux has available falls with each array of ours and of the other workers.
            self._memory_limit = default_memory_limit() // self._workers_here
        return self._memory_limit

    def _record(self, task: Task, shard: bytes, fingerprint: str, seconds: float) -> Record:
        from worker.service.machine import versions

        return Record(
            task=task,
            sha256=hashlib.sha256(shard).hexdigest(),
            size=len(shard),
            fingerprint=fingerprint,
            versions=versions(),
            host=self._host,
            worker=self._worker,
            seconds=round(seconds, 4),
            finished_at=utc_now(),
        )

    def _put(self, record: Record, shard: bytes, context: JobContext) -> str:
        waiting = False
        while (outcome := self._store.put(record, shard)) == "full":
            if context.others_wait():
                self._keep(record, shard)
                raise NoRoomError(f"{self._store.label} has no room for this run: run `producer collect`")
            if not waiting:
                logger.warning("%s is full; waiting until `producer collect` empties it", self._store.label)
            waiting = True
            deadline = time.monotonic() + RELAY_POLL_SECONDS
            while time.monotonic() < deadline:
                context.check("waiting: the relay is full, run `producer collect`")
                time.sleep(0.2)
        self._kept.pop(record.id, None)
        return outcome

    def _keep(self, record: Record, shard: bytes) -> None:
        self._kept.pop(record.id, None)
        self._kept[record.id] = record, shard
        if len(self._kept) > MAX_KEPT:
            del self._kept[next(iter(self._kept))]
