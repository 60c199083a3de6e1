"""A simulated Mac: a supervisor and one worker process, each a fiber that runs the product's own code."""

import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from redis import Redis
from rq.timeouts import BaseDeathPenalty

from benchmarks.fleet.macs import Chip
from benchmarks.fleet.virtual_time import Clock, Fiber, Owner, unused
from benchmarks.fleet.workload import PASS_FLOPS, Workload
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.kinds.kind import Task
from shared.stores.relay_store import RELAY_ID, RelayStore
from worker.jobs.hedge import CopyContext
from worker.jobs.job_context import JobContext
from worker.jobs.lease import Beat, BeatThread
from worker.jobs.lease_worker import LeaseWorker
from worker.jobs.post_mortem import return_its_jobs
from worker.service.process import EXIT_BROKEN
from worker.service.runtime import Runtime
from worker.service.supervisor import HEALTHY_SECONDS, POLL_SECONDS, Supervisor

QUEUE = queue_name(RELAY_ID)
START_SECONDS = 8.0
"""From the start of a process until it takes jobs: imports."""
LOAD_SECONDS = 15.0
"""From a process' first job until it computes: the model's weights are read."""
CHECK_SECONDS = 5.0
"""A task looks so often whether it still has its lease."""
JITTER = 0.03
"""The same task takes longer or shorter by up to this part."""


@dataclass(slots=True)
class Log:
    """What happened, for the figures."""

    computed: float = 0.0
    """Floating point operations, those in vain included."""
    stored: dict[str, int] = field(default_factory=dict)
    """How often a result of each task was stored."""
    copies: int = 0
    absences: list[tuple[float, float, float]] = field(default_factory=list)
    """When a machine fell asleep or went, for how many seconds, and its speed."""
    faults: list[str] = field(default_factory=list)
    """What can't have been: a worker that ended by itself."""

    def away(self, end: float) -> float:
        """Floating point operations that machines would have done while they were asleep or gone."""
        return sum(min(seconds, end - start) * speed for start, seconds, speed in self.absences)


@dataclass(frozen=True, slots=True)
class World:
    """What all machines share."""

    clock: Clock
    connect: Callable[[Fiber | None], Redis]
    workload: Workload
    random: Random
    hedge: bool
    folder: Path
    log: Log


class Mac(Owner):
    """One of them."""

    def __init__(self, world: World, number: int, chip: Chip) -> None:
        self.name = f"mac-{number:02d}-{chip.name.lower().replace(' ', '-')}"
        self.chip = chip
        self.metal_fails = False
        """Whether the GPU fails at the next step."""
        self._world = world
        self._starts = 0
        self._worker: Fiber | None = None
        self._supervisor: Fiber | None = None
        self._code = 0
        """The latest worker's exit code."""

    @property
    def is_up(self) -> bool:
        """Neither asleep nor gone."""
        awake = self.asleep_until <= self._world.clock.now
        return awake and bool(self._worker and not self._worker.is_over)

    def start(self, *, warm: bool = False) -> None:
        """`worker start`; a warm one begins with a process that has its model."""
        self._supervisor = self._world.clock.start(lambda: self._supervise(warm), self)

    def kill_worker(self) -> None:
        """SIGKILL, to the worker process alone."""
        assert self._worker
        assert self._supervisor
        self._worker.kill()
        self._code = -signal.SIGKILL
        self._supervisor.wake(POLL_SECONDS)

    def sleep(self, seconds: float) -> None:
        """Close the lid for so long."""
        self._world.clock.freeze(self, seconds)
        self._note_absence(seconds)

    def lose_power(self, seconds: float) -> None:
        """Be gone, and start again after so long."""
        assert self._worker
        assert self._supervisor
        self._worker.kill()
        self._supervisor.kill()
        self._world.clock.after(seconds, self.start, self)
        self._note_absence(seconds)

    def _note_absence(self, seconds: float) -> None:
        self._world.log.absences.append((self._world.clock.now, seconds, self.chip.speed))

    def compute(self, task: Task, context: JobContext) -> None:
        """Take as long as this machine would."""
        flops = self._world.workload.loads[task.id].flops
        total = left = flops / self.chip.speed * self._world.random.uniform(1 - JITTER, 1 + JITTER)
        # A copy looks as often as a worker does: after each forward pass.
        step = PASS_FLOPS / self.chip.speed if isinstance(context, CopyContext) else CHECK_SECONDS
        while left > 0:
            seconds = min(step, left)
            time.sleep(seconds)
            left -= seconds
            self._world.log.computed += seconds * self.chip.speed
            if self.metal_fails:
                self.metal_fails = False
                raise RuntimeError("[METAL] Command buffer execution failed: Caused GPU Hang Error")
            context.check(f"{100 * (1 - left / total):.0f}%")

    def _supervise(self, warm: bool) -> None:
        """What `worker.service.supervisor` does, with its pauses."""
        clock, backoff = self._world.clock, Supervisor.first_backoff
        while True:
            started, self._starts = clock.now, self._starts + 1
            name = f"{self.name}-{self._starts}"
            self._worker = clock.start(partial(self._work, name, warm), self)
            assert self._supervisor
            self._supervisor.wait(None)
            return_its_jobs(TaskQueue(QUEUE, self._world.connect(self._supervisor)), name, self._code)
            backoff = Supervisor.first_backoff if clock.now - started > HEALTHY_SECONDS else backoff
            time.sleep(backoff)
            backoff = min(2 * backoff, Supervisor.max_backoff)
            warm = False

    def _work(self, name: str, warm: bool) -> None:
        """What `worker.service.process` does."""
        assert self._worker
        assert self._supervisor
        time.sleep(0 if warm else START_SECONDS)
        redis = self._world.connect(self._worker)
        runtime = _SimulatedRuntime(self, self._world, redis, name, warm=warm)
        worker = _SimulatedWorker(self._world, self, redis, runtime, name)
        worker.work(logging_level="CRITICAL")
        if not worker.broken:
            self._world.log.faults.append(f"{name} ended by itself: {worker.error}")
        self._code = EXIT_BROKEN
        self._supervisor.wake(POLL_SECONDS)


class _SimulatedRuntime(Runtime):
    """The worker's own, but for the model and what it computes."""

    def __init__(self, mac: Mac, world: World, redis: Redis, name: str, *, warm: bool) -> None:
        super().__init__(store=RelayStore(redis), host=mac.name, worker=name, cache_dir=world.folder)
        self._mac = mac
        self._world = world
        self._loaded = warm

    def run(self, task: Task, context: JobContext) -> dict[str, Any]:
        found = super().run(task, context)
        if found["outcome"] == "stored":
            self._world.log.stored[task.id] = self._world.log.stored.get(task.id, 0) + 1
        return found

    def _model_of(self, task: Task) -> Any:
        if not self._loaded:
            time.sleep(LOAD_SECONDS)
            self._loaded = True
        return _Model()

    def _join_run(self, task: Task, model: Any, context: JobContext) -> None:
        context.tell_speed(self._mac.chip.speed)

    def _run_task(self, task: Task, model: Any, context: JobContext) -> bytes:
        self._mac.compute(task, context)
        return bytes(self._world.workload.loads[task.id].shard_bytes)


class _Model:
    fingerprint = "f" * 64


class _SimulatedBeats(BeatThread):
    """Beats as events of the clock."""

    def __init__(self, clock: Clock, mac: Mac, process: Fiber, seconds: float) -> None:
        super().__init__()
        self._clock, self._mac, self._process, self._seconds = clock, mac, process, seconds

    def take(self, beat: Beat) -> None:
        self._clock.after(0, lambda: self._look(beat), self._mac)

    def _look(self, beat: Beat) -> None:
        if not beat.is_over and not self._process.killed:
            beat.look()
            self._clock.after(self._seconds, lambda: self._look(beat), self._mac)


class _NoPenalty(BaseDeathPenalty):
    """A job's time limit is real time, and hours."""

    setup_death_penalty = cancel_death_penalty = unused


class _SimulatedWorker(LeaseWorker):
    """The product's own worker, in a fiber instead of a process."""

    death_penalty_class = _NoPenalty

    def __init__(self, world: World, mac: Mac, redis: Redis, runtime: Runtime, name: str) -> None:
        super().__init__(
            QUEUE,
            connection=redis,
            beat_connection=redis,
            functions=runtime.functions,
            host=mac.name,
            name=name,
            start_id=mac.name,
            hedge=world.hedge,
        )
        self.error = ""
        """RQ's loop ends over any error, and only logs it."""
        self.log = cast(
            Any, SimpleNamespace(debug=unused, info=unused, warning=unused, error=self._note_error)
        )
        process = cast(Fiber, world.clock.fiber)
        self._beats = _SimulatedBeats(world.clock, mac, process, self.beat_seconds)

    def procline(self, message: str) -> None:
        pass

    def _install_signal_handlers(self) -> None:
        pass

    def register_death(self) -> None:
        self._leave_list()

    def _note_error(self, *_: Any, **__: Any) -> None:
        self.error = traceback.format_exc()
