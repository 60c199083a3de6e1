"""Runs a fleet on paper from the enqueueing until the last task is collected."""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from redis import ConnectionPool, Redis

from benchmarks.fleet.mac import Log, Mac, World
from benchmarks.fleet.macs import CHIPS
from benchmarks.fleet.producer_side import SimulatedProducer
from benchmarks.fleet.virtual_redis import VirtualRedis, Waiters, follow
from benchmarks.fleet.virtual_time import Clock
from benchmarks.fleet.workload import make_workload

FailureKind = Literal["killed", "asleep", "metal", "gone"]
KINDS: tuple[FailureKind, ...] = ("killed", "asleep", "metal", "gone")
ASLEEP_SECONDS = (60.0, 300.0)
"""All longer than a lease."""
GONE_SECONDS = (60.0, 600.0)
LIMIT = 20
"""Ideal makespans after which it is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it. Seconds are virtual, but for `real_seconds`."""

    tasks: int
    failures: int
    hedge: bool
    seed: int
    makespan: float
    ideal: float
    """All work by the sum of all speeds."""
    tail: float
    """From the moment that no job waited any more."""
    away: float
    """Part of all speeds' work until the end that was lost to sleep and absence."""
    twice: float
    """Part of the work that was done in vain, or more than once."""
    stored: dict[str, int]
    """How often a result of each task was stored."""
    failed: int
    """Tasks that were given up."""
    real_seconds: float

    @property
    def share(self) -> float:
        """Ideal by makespan."""
        return self.ideal / self.makespan

    @property
    def share_of_those_there(self) -> float:
        """The same, by the speeds of those machines that were awake and there."""
        return self.share / (1 - self.away)


@dataclass(frozen=True, slots=True)
class Failure:
    """One thing that goes wrong."""

    after: float
    kind: FailureKind
    mac: int
    seconds: float
    """Asleep or gone."""


def simulate(
    url: str,
    *,
    tasks: int,
    failures: int = 0,
    hedge: bool = True,
    seed: int = 0,
    images: int | None = None,
    limit: float = LIMIT,
) -> Outcome:
    """Simulate a run on an empty Redis of its own.

    Raises:
        TimeoutError: it is not over after `limit` times the ideal.
        RuntimeError: a worker ended by itself.
    """
    began = time.perf_counter()
    random = Random(seed)
    workload = make_workload(tasks, min(100, tasks // 20) if images is None else images)
    ideal = workload.flops / sum(chip.speed for chip in CHIPS)
    clock, log = Clock(), Log()
    pool = ConnectionPool.from_url(url)
    real = Redis(connection_pool=pool)
    waiters = Waiters(real)
    clock.moved = follow(real)
    with _quiet(), tempfile.TemporaryDirectory() as folder, clock.in_charge():
        world = World(
            clock=clock,
            connect=lambda process: VirtualRedis(pool, clock, waiters, process),
            workload=workload,
            random=random,
            hedge=hedge,
            folder=Path(folder),
            log=log,
        )
        macs = [Mac(world, number, chip) for number, chip in enumerate(CHIPS)]
        producer = SimulatedProducer(world.connect(None), workload)
        for failure in plan_failures(failures, ideal, random):
            clock.after(failure.after, lambda failure=failure: strike(macs, failure))
        for mac in macs:
            mac.start(warm=True)
        clock.start(producer.collect)
        clock.start(producer.look)
        try:
            clock.run(lambda: producer.is_over or bool(log.faults), limit * ideal, waiters.look)
        finally:
            clock.end()
    if log.faults:
        raise RuntimeError("; ".join(log.faults))
    capacity = clock.elapsed * sum(chip.speed for chip in CHIPS)
    return Outcome(
        tasks=tasks,
        failures=failures,
        hedge=hedge,
        seed=seed,
        makespan=clock.elapsed,
        ideal=ideal,
        tail=clock.now - producer.emptied,
        away=log.away(clock.now) / capacity,
        twice=log.computed / workload.flops - 1,
        stored=log.stored,
        failed=len(producer.failed),
        real_seconds=time.perf_counter() - began,
    )


def plan_failures(count: int, within: float, random: Random) -> list[Failure]:
    """Return so many failures, as many of each kind, at any time and on any machine."""
    plan = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        seconds = random.uniform(*(ASLEEP_SECONDS if kind == "asleep" else GONE_SECONDS))
        plan.append(Failure(random.uniform(0, within), kind, random.randrange(len(CHIPS)), seconds))
    return plan


def strike(macs: list[Mac], failure: Failure) -> None:
    """Let it happen, to the next machine that is up."""
    for place in range(len(macs)):
        mac = macs[(failure.mac + place) % len(macs)]
        if mac.is_up:
            break
    else:
        return
    if failure.kind == "killed":
        mac.kill_worker()
    elif failure.kind == "asleep":
        mac.sleep(failure.seconds)
    elif failure.kind == "metal":
        mac.metal_fails = True
    else:
        mac.lose_power(failure.seconds)


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
