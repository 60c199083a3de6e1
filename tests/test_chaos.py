"""Workers, machines, Redis and network break in mid-run: every task ends with one whole shard, none is lost.

All real but the model: redis-server, worker processes, leases (short ones), reconciling and collecting.
BITFLEET_LONG_TESTS=1 freezes Redis for 30 s, as long as a Mac's router takes to come back.
"""

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis.exceptions import OutOfMemoryError

from shared.jobs.history import read_events
from shared.jobs.task_job import MAX_RETRIES, TaskJob
from tests.chaos import LEASE, Chaos
from tests.hosts import two_hosts
from tests.redis_process import RedisProcess, short_folder
from tests.tasks import image_task, wait_until

pytestmark = pytest.mark.slow

FREEZE_SECONDS = 30.0 if os.environ.get("BITFLEET_LONG_TESTS") else 3.0 * LEASE


@pytest.fixture
def chaos(own_redis: RedisProcess, tmp_path: Path) -> Iterator[Chaos]:
    chaos = Chaos(own_redis.url, tmp_path)
    yield chaos
    chaos.close()


class Every:
    """Does something at random intervals."""

    def __init__(self, low: float, high: float, act: Callable[[], None]) -> None:
        self._low, self._high, self._act = low, high, act
        self._next = time.monotonic() + low
        self.times = 0

    def __call__(self) -> None:
        if time.monotonic() < self._next:
            return
        self._act()
        self.times += 1
        self._next = time.monotonic() + random.uniform(self._low, self._high)


def test_workers_are_killed_again_and_again(chaos: Chaos) -> None:
    chaos.enqueue(200, "0.1")
    for _ in range(3):
        chaos.start()

    def kill_one() -> None:
        victim = random.choice(chaos.alive())
        victim.kill()
        victim.wait()
        chaos.start()

    killer = Every(1, 2, kill_one)
    chaos.collect_all(killer)
    chaos.settle()
    assert killer.times >= 3
    done = re.findall(r"(image \d+): done", chaos.logs())
    # Killed after its record was written, a job is looked at once more.
    assert len(done) <= len(chaos.tasks) + killer.times


def test_workers_fall_asleep_and_wake_up(chaos: Chaos) -> None:
    chaos.enqueue(60, "0.3")
    workers = [chaos.start() for _ in range(3)]
    asleep: list[subprocess.Popen[bytes]] = []

    def toggle() -> None:
        if asleep:
            asleep.pop().send_signal(signal.SIGCONT)
        else:
            asleep.append(random.choice(workers))
            asleep[0].send_signal(signal.SIGSTOP)

    chaos.wait_until_busy(3)
    # Longer than a lease, or it would not be a sleep.
    chaos.collect_all(Every(1.5 * LEASE, 2 * LEASE, toggle))
    if asleep:
        toggle()
    assert all(worker.poll() is None for worker in workers)
    chaos.settle()


def test_redis_is_killed_and_restarted(chaos: Chaos, own_redis: RedisProcess) -> None:
    chaos.enqueue(60, "0.2")
    workers = [chaos.start() for _ in range(2)]
    chaos.wait_until_busy(2)

    def restart() -> None:
        own_redis.kill()
        time.sleep(1)
        own_redis.start()

    restarter = Every(2, 3, restart)
    chaos.collect_all(restarter)
    chaos.settle()
    assert restarter.times >= 2
    assert [worker.returncode for worker in workers] == [0, 0]


def test_redis_is_frozen(chaos: Chaos, own_redis: RedisProcess) -> None:
    chaos.enqueue(20, "0.3")
    # A busy machine may well be silent for LEASE, frozen or not.
    workers = [chaos.start(lease=2 * LEASE) for _ in range(2)]
    chaos.wait_until_busy(2)
    with own_redis.frozen():
        time.sleep(FREEZE_SECONDS)
    chaos.collect_all()
    chaos.settle()
    assert [worker.returncode for worker in workers] == [0, 0]
    # All leases ran out meanwhile, but nobody died.
    assert "gave no sign of life" not in chaos.logs()


def test_redis_is_wiped(chaos: Chaos) -> None:
    chaos.enqueue(40, "0.3")
    workers = [chaos.start() for _ in range(2)]
    chaos.wait_until_busy(2)
    wiper = Every(1, 2, chaos.wipe)
    chaos.collect_all(lambda: wiper() if wiper.times < 3 else None)
    wait_until(lambda: chaos.redis.scard("rq:workers") == 2)
    chaos.settle()
    assert wiper.times >= 2
    assert [worker.returncode for worker in workers] == [0, 0]


def test_redis_is_full(chaos: Chaos) -> None:
    chaos.enqueue(40, "0.05")
    workers = [chaos.start() for _ in range(2)]
    wait_until(lambda: chaos.redis.scard("rq:workers") == 2)
    used = chaos.redis.info("memory")["used_memory"]
    chaos.redis.config_set("maxmemory", used + 200_000)
    wait_until(lambda: "is full" in chaos.logs())
    # So far it may be just the next shard that finds no room. Now nothing does.
    used = chaos.redis.info("memory")["used_memory"]
    chaos.redis.config_set("maxmemory", 1)
    with pytest.raises(OutOfMemoryError):
        chaos.redis.set("more", b"x" * 10)
    time.sleep(2 * LEASE)
    assert [worker.poll() for worker in workers] == [None, None]
    # Room for all: how much of a scanty one is eaten by buffers is Redis's affair.
    chaos.redis.config_set("maxmemory", used + 4_000_000)
    chaos.collect_all()
    chaos.settle()
    assert "producer collect" in chaos.logs()
    assert "Traceback" not in chaos.logs()


def test_poison_stops_no_run(chaos: Chaos) -> None:
    chaos.enqueue(10, "0.05")
    poison = image_task(99, prompt="poison")
    chaos.queue.enqueue_tasks([poison])
    chaos.enqueue(10, "0.05")
    chaos.start("supervise", "2")
    wait_until(lambda: chaos.queue.failed_ids() == {poison.id})
    chaos.collect_all()
    events = read_events(chaos.redis, poison.id)
    assert Counter(event.outcome for event in events) == {
        "started": 1 + MAX_RETRIES,
        "crashed": 1 + MAX_RETRIES,
    }
    crashes = [event for event in events if event.outcome == "crashed"]
    assert {event.detail for event in crashes} == {"signal SIGKILL"}
    assert all(event.host for event in crashes)


def test_a_computation_that_hangs_ends_with_its_process(chaos: Chaos) -> None:
    hung = image_task(0, prompt="hang")
    chaos.queue.enqueue_tasks([hung])
    chaos.redis.hset(TaskJob.key_for(hung.id), mapping={"timeout": 1, "retries_left": 0})
    chaos.start("supervise", "1")
    wait_until(lambda: chaos.queue.failed_ids() == {hung.id})
    assert read_events(chaos.redis, hung.id)[-1].detail == "the job was over its time limit"


def test_an_idle_worker_takes_a_second_copy_of_a_slow_job(chaos: Chaos) -> None:
    chaos.enqueue(8, "0.2")
    slow = chaos.start(slowness=1000)
    chaos.wait_until_busy()
    quick = chaos.start(hedge=True)
    chaos.collect_all()
    # The slow one drops its copy, and is free again.
    wait_until(lambda: "the result is dropped" in chaos.logs())
    assert chaos.logs().count("taking a second copy") == 1
    assert [worker.poll() for worker in (slow, quick)] == [None, None]
    chaos.settle()


def test_a_machine_is_cut_off_and_comes_back(tmp_path: Path) -> None:
    """Two worker hosts in network namespaces of their own; one loses its network for longer than a lease."""
    with two_hosts() as (near, far), short_folder() as folder:
        addresses = [near.redis_address, far.redis_address]
        with RedisProcess(folder, append_only=True, addresses=addresses) as server:
            chaos = Chaos(server.url, tmp_path)
            try:
                chaos.enqueue(40, "0.3")
                workers = [
                    chaos.start(prefix=host.prefix, url=f"redis://{host.redis_address}:6379")
                    for host in (near, far)
                ]
                chaos.wait_until_busy(2)
                far.cut_off()
                back = time.monotonic() + 3 * LEASE
                chaos.collect_all(lambda: far.reconnect() if time.monotonic() > back else None)
                chaos.settle()
                assert [worker.returncode for worker in workers] == [0, 0]
                # Whether it was cut off within a job or while starting one: the job went to the other, and
                # what came back late was of no account.
                for either in (
                    ("gave no sign of life", "never started"),
                    ("the result is dropped", "another worker has it meanwhile"),
                ):
                    assert any(words in chaos.logs() for words in either)
            finally:
                chaos.close()
