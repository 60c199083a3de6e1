"""A fleet of real worker processes on a real Redis, and the collector's part of the work beside it.

Faults come at times and in places that a seed decides. Each test prints it; BITFLEET_SEED repeats it.
BITFLEET_CHAOS=full (`make chaos`) has many more of them.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from redis import Redis
from redis.exceptions import OutOfMemoryError

from producer.folder.intake import take_in
from producer.jobs.reconcile import Reconciled, reconcile
from shared.jobs.connection import connect
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.kinds.calibration import CalibrationTask
from shared.stores.records import Record
from shared.stores.relay_store import RelayStore
from tests.chaos_worker import shard_of
from tests.tasks import image_task, wait_until
from worker.service.options import WorkerOptions

ROOT = Path(__file__).parent.parent
LEASE = 2
FULL = os.environ.get("BITFLEET_CHAOS") == "full"
PATIENCE_SECONDS = 60.0


@dataclass
class Chaos:
    """Tasks, workers, and what was collected; every shard once."""

    url: str
    folder: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    tasks: list[CalibrationTask] = field(default_factory=list)
    collected: dict[str, Record] = field(default_factory=dict)
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    chance: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self.redis: Redis = connect(self.url)
        self.store = RelayStore(self.redis)
        self.queue = TaskQueue(queue_name(self.store.id), self.redis)
        seed = os.environ.get("BITFLEET_SEED") or str(random.randrange(10**6))
        self.chance.seed(seed)
        print(f"these faults again: BITFLEET_SEED={seed}")  # noqa: T201 - pytest shows it of a red test

    def enqueue(self, count: int, prompt: str) -> None:
        first = len(self.tasks)
        self.tasks += [image_task(index, prompt=prompt) for index in range(first, first + count)]
        self.reconcile()

    def start(
        self,
        *arguments: str,
        prefix: Sequence[str] = (),
        url: str | None = None,
        slowness: float = 1,
        hedge: bool = False,
        host: str | None = None,
        lease: int = LEASE,
        wrong_clock: float | None = None,
    ) -> subprocess.Popen[bytes]:
        options = WorkerOptions(
            redis_url=url or self.url, lease_seconds=lease, with_parent=True, beat_seconds=0.4, hedge=hedge
        )
        values = {
            "CHAOS_SLOWNESS": str(slowness),
            "CHAOS_SEED": str(self.chance.random()),
            "PYTHONPATH": str(ROOT),
        }
        if host is not None:
            values["CHAOS_HOST"] = host
        if wrong_clock is not None:
            values["CHAOS_CLOCK"] = str(wrong_clock)
        with (self.folder / f"worker-{next(self.numbers)}.log").open("wb") as log:
            worker = subprocess.Popen(
                [*prefix, sys.executable, "-m", "tests.chaos_worker", *arguments],
                cwd=ROOT,
                env=options.to_environment() | values,
                # Its other end closes with us.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("worker-*.log")))

    def reconcile(self) -> Reconciled:
        done = frozenset(self.collected)
        return reconcile(self.tasks, done, connection=self.redis, store=self.store, retry_failed=False)

    def collect(self) -> Reconciled:
        """One pass of a collector: take in what is finished, enqueue what got lost."""

        def keep(record: Record, shard: bytes) -> None:
            assert record.id not in self.collected, f"{record.id} was collected twice"
            assert shard == shard_of(record.task)

        intake = take_in(self.tasks, self.collected, self.store, keep)
        assert intake.problems == []
        return self.reconcile()

    def collect_all(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Until every task is collected; `meanwhile` breaks things."""

        def all_collected() -> bool:
            meanwhile()
            with suppress(OutOfMemoryError):
                reconciled = self.collect()
                assert not reconciled.failed, f"failed: {reconciled.failed}\n{self.logs()[-5000:]}"
            return len(self.collected) == len(self.tasks)

        self.wait_until(all_collected)

    def settle(self) -> None:
        """Workers leave; then nothing may be left over, neither jobs nor shards."""
        self.wait_until(lambda: not self.queue.in_flight().ids)
        leaving = self.alive()
        for worker in leaving:
            worker.send_signal(signal.SIGTERM)
        for worker in leaving:
            worker.wait(30)
        self.collect()
        assert self.queue.in_flight().ids == frozenset()
        assert self.queue.failed_ids() == set()
        namespace = self.tasks[0].namespace
        assert self.store.record_ids(namespace) == set()
        assert self.redis.keys(f"bitfleet:shard:{namespace}:*") == []
        assert self.store.used_bytes == 0

    def wipe(self) -> None:
        self.redis.flushall()

    def wait_until(self, condition: Callable[[], object]) -> None:
        """With the tasks that are missing, and the workers' last words, should it never be so."""

        def tell() -> str:
            missing = [task.id for task in self.tasks if task.id not in self.collected]
            return f"missing: {missing}, on their way: {self.queue.in_flight()}\n{self.logs()[-5000:]}"

        wait_until(condition, PATIENCE_SECONDS, tell)

    def wait_until_busy(self, count: int = 1) -> None:
        """Until so many jobs run."""
        self.wait_until(lambda: self.redis.zcard(self.queue.started_job_registry.key) >= count)

    def leases(self) -> set[bytes]:
        return set(self.redis.zrange(self.queue.started_job_registry.key, 0, -1))

    def lease_of(self, worker: subprocess.Popen[bytes]) -> bytes | None:
        """The lease of the job that a worker process runs."""
        for key in self.redis.smembers("rq:workers"):
            if self.redis.hget(key, "pid") == str(worker.pid).encode():
                return next(iter(self.redis.smembers(key + b":executions")), None)
        return None

    def alive(self) -> list[subprocess.Popen[bytes]]:
        return [worker for worker in self.workers if worker.poll() is None]

    def close(self) -> None:
        for worker in self.alive():
            # A supervisor's workers, which are in sessions of their own.
            found = subprocess.run(["pgrep", "-P", str(worker.pid)], capture_output=True, check=False)
            worker.send_signal(signal.SIGCONT)
            worker.kill()
            worker.wait()
            for pid in map(int, found.stdout.split()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.redis.close()


class Every:
    """Does something at random intervals, in seconds, so many times."""

    def __init__(
        self, low: float, high: float, act: Callable[[], None], *, times: int, chance: random.Random
    ) -> None:
        self._low, self._high, self._act, self._chance = low, high, act, chance
        self._left = times
        self._next = self._draw()

    def _draw(self) -> float:
        return time.monotonic() + self._chance.uniform(self._low, self._high)

    def __call__(self) -> None:
        if self._left and time.monotonic() >= self._next:
            self._left -= 1
            self._act()
            self._next = self._draw()
