"""Thousands of tasks while everything breaks in turn, as `make soak` runs it; in `make chaos` with fewer.

BITFLEET_SOAK is the number of tasks. For each 10,000 of them 500 workers are killed and Redis is killed three
times, frozen twice and wiped once. Eight workers; one of them is never killed, so that its memory can be
measured: it must not grow with the tasks, nor must the collector's by more than its list of what it has.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis.exceptions import OutOfMemoryError

from tests.chaos import FULL, LEASE, Chaos
from tests.redis_process import RedisProcess

TASKS = int(os.environ.get("BITFLEET_SOAK") or 600)
KILLS = max(10, TASKS // 20)
REDIS_KILLS, FREEZES, WIPES = 3, 2, 1
GROWTH_BYTES = 10e6
BYTES_A_RECORD = 4000
"""What this test's collector keeps of a task: the task itself, and its record."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.chaos,
    pytest.mark.skipif(
        not (FULL or "BITFLEET_SOAK" in os.environ), reason="minutes long: `make soak`, or `make chaos`"
    ),
]


@pytest.fixture
def chaos(own_redis: RedisProcess, tmp_path: Path) -> Iterator[Chaos]:
    chaos = Chaos(own_redis.url, tmp_path)
    yield chaos
    chaos.close()


def test_everything_breaks_in_turn(chaos: Chaos, own_redis: RedisProcess) -> None:
    chaos.enqueue(TASKS, "0.01")
    steady = chaos.start()
    supervisors = [chaos.start("supervise", str(count)) for count in (4, 3)]

    killed: list[int] = []

    def kill_a_worker() -> None:
        children = [child for each in supervisors for child in _children(each.pid) if child not in killed]
        if children:
            killed.append(chaos.chance.choice(children))
            os.kill(killed[-1], signal.SIGKILL)

    def kill_redis() -> None:
        own_redis.kill()
        time.sleep(chaos.chance.uniform(0, 1))
        own_redis.start()

    def freeze_redis() -> None:
        with own_redis.frozen():
            time.sleep(1.25 * LEASE)

    faults = _spread(kill_a_worker, KILLS) + _spread(kill_redis, REDIS_KILLS)
    faults += _spread(freeze_redis, FREEZES) + _spread(chaos.wipe, WIPES)
    faults.sort(key=lambda fault: fault[0])
    sizes: list[tuple[int, int]] = []
    started, last_progress = time.monotonic(), time.monotonic()
    while len(chaos.collected) < TASKS:
        before = len(chaos.collected)
        try:
            assert not chaos.collect().failed, chaos.logs()[-5000:]
        except OutOfMemoryError:
            continue
        done = len(chaos.collected)
        if done > before:
            last_progress = time.monotonic()
        assert time.monotonic() - last_progress < 120, chaos.logs()[-5000:]
        if not sizes and done >= TASKS / 10:
            sizes.append((_memory(steady.pid), _memory(os.getpid())))
        while faults and faults[0][0] <= done / TASKS:
            faults.pop(0)[1]()
        time.sleep(0.02)
    sizes.append((_memory(steady.pid), _memory(os.getpid())))
    seconds = time.monotonic() - started
    assert steady.poll() is None
    chaos.settle()
    (worker, collector), (worker_at_last, collector_at_last) = sizes
    # For docs/reliability.md; `make soak` shows it.
    print(  # noqa: T201
        f"{TASKS} tasks, {len(killed)} workers killed, {seconds:.0f} s\n"
        f"worker: {worker / 1e6:.1f} MB at a tenth, {worker_at_last / 1e6:.1f} MB at the end\n"
        f"collector: {collector / 1e6:.1f} MB at a tenth, {collector_at_last / 1e6:.1f} MB at the end"
    )
    assert not faults
    assert len(killed) > 0.9 * KILLS
    assert worker_at_last - worker < GROWTH_BYTES
    assert collector_at_last - collector < GROWTH_BYTES + BYTES_A_RECORD * TASKS


def _spread(fault: Callable[[], None], times: int) -> list[tuple[float, Callable[[], None]]]:
    """When it happens: at which part of the tasks done."""
    return [((number + 0.5) / times, fault) for number in range(times)]


def _children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def _memory(pid: int) -> int:
    """Bytes that a process holds now."""
    found = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(found.stdout) * 1024
