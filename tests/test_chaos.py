"""Workers, machines, Redis and network break in mid-run: every task ends with one whole shard, none is lost.

All real but the model: redis-server, worker processes, leases (short ones), reconciling and collecting.
BITFLEET_CHAOS=full has more tasks and more faults, and freezes Redis for 30 s, as long as a Mac's router
takes to come back.
"""

import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from redis.exceptions import OutOfMemoryError

from shared.jobs.history import Event, add_event, read_events
from shared.jobs.task_job import TaskJob
from tests.chaos import FULL, LEASE, Chaos, Every
from tests.chaos_worker import shard_of
from tests.hosts import two_hosts
from tests.redis_process import RedisProcess, short_folder
from tests.tasks import SETTINGS, image_task

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

OTHER_RUN = msgspec.structs.replace(SETTINGS, seed=1)


@pytest.fixture
def chaos(own_redis: RedisProcess, tmp_path: Path) -> Iterator[Chaos]:
    chaos = Chaos(own_redis.url, tmp_path)
    yield chaos
    chaos.close()


def test_workers_are_killed_again_and_again(chaos: Chaos) -> None:
    kills = 20 if FULL else 3
    chaos.enqueue(300 if FULL else 24, "0.1")
    for _ in range(3):
        chaos.start()

    def kill_one() -> None:
        victim = chaos.chance.choice(chaos.alive())
        victim.kill()
        victim.wait()
        chaos.start()

    chaos.wait_until_busy()
    chaos.collect_all(Every(0.05, 1.5 if FULL else 0.4, kill_one, times=kills, chance=chaos.chance))
    chaos.settle()
    done = re.findall(r"(image \d+): done", chaos.logs())
    # Killed after its record was written, a job is looked at once more.
    assert len(done) <= len(chaos.tasks) + kills


def test_workers_fall_asleep_and_wake_up(chaos: Chaos) -> None:
    workers = [chaos.start() for _ in range(2)]
    for turn in range(8 if FULL else 1):
        sleeper = chaos.chance.choice(workers)
        lose_a_job(
            chaos,
            sleeper,
            lambda sleeper=sleeper: sleeper.send_signal(signal.SIGSTOP),
            lambda sleeper=sleeper: sleeper.send_signal(signal.SIGCONT),
        )
        chaos.wait_until(lambda turn=turn: late_results(chaos) > turn)
    chaos.collect_all()
    assert all(worker.poll() is None for worker in workers)
    chaos.settle()


def lose_a_job(
    chaos: Chaos, worker: subprocess.Popen[bytes], stop: Callable[[], None], go_on: Callable[[], None]
) -> None:
    """Stop a worker in the middle of a job, until another has returned that."""

    def lost() -> bool:
        if not chaos.queue.in_flight().queued:
            chaos.enqueue(6, "0.4")
        returned = chaos.logs().count("gave no sign of life")
        stop()
        # None when it was between two jobs; or its last word, just on its way, was that it is done.
        if lease := chaos.lease_of(worker):
            chaos.wait_until(lambda: lease not in chaos.leases())
        go_on()
        return chaos.logs().count("gave no sign of life") > returned

    chaos.wait_until(lambda: chaos.redis.scard("rq:workers") == len(chaos.workers))
    chaos.wait_until(lost)


def late_results(chaos: Chaos) -> int:
    """Results of jobs that another had: dropped; or done all the same, by one stopped as it said so."""
    done = re.findall(r"(image \d+): done", chaos.logs())
    return chaos.logs().count("the result is dropped") + len(done) - len(set(done))


def test_clocks_are_wrong_by_an_hour(chaos: Chaos) -> None:
    """They go wrong while workers run. One of these dies: its lease ends when it should."""
    chaos.enqueue(30 if FULL else 7, "0.8")
    workers = [chaos.start(wrong_clock=seconds) for seconds in (3600, -3600, 3600)]
    chaos.wait_until(lambda: len(chaos.store.record_ids(chaos.tasks[0].namespace)) > 1)
    workers[2].kill()
    workers[2].wait()
    chaos.collect_all()
    finished = [datetime.fromisoformat(record.finished_at) for record in chaos.collected.values()]
    assert max(finished) - min(finished) > timedelta(hours=1.9)
    chaos.settle()
    assert [worker.returncode for worker in workers] == [0, 0, -signal.SIGKILL]
    # Nothing was done twice, and only the dead one was missed.
    assert len(re.findall(r"(image \d+): done", chaos.logs())) <= len(chaos.tasks) + 1
    assert chaos.logs().count("gave no sign of life") <= 1


def test_redis_is_killed_and_restarted(chaos: Chaos, own_redis: RedisProcess) -> None:
    chaos.enqueue(60 if FULL else 12, "0.2")
    workers = [chaos.start() for _ in range(2)]
    chaos.wait_until_busy(2)

    def restart() -> None:
        own_redis.kill()
        time.sleep(chaos.chance.uniform(0, 2 if FULL else 0.2))
        own_redis.start()

    chaos.collect_all(Every(0.1, 2, restart, times=4 if FULL else 1, chance=chaos.chance))
    chaos.settle()
    assert [worker.returncode for worker in workers] == [0, 0]


def test_redis_is_frozen(chaos: Chaos, own_redis: RedisProcess) -> None:
    chaos.enqueue(20 if FULL else 6, "0.3")
    workers = [chaos.start() for _ in range(2)]
    chaos.wait_until_busy(2)
    with own_redis.frozen():
        # Nobody can be waited for: the leases have to run out.
        time.sleep(30 if FULL else 1.25 * LEASE)
    chaos.collect_all()
    chaos.settle()
    assert [worker.returncode for worker in workers] == [0, 0]
    # All leases ran out meanwhile, but nobody died.
    assert "gave no sign of life" not in chaos.logs()


def test_redis_is_wiped(chaos: Chaos) -> None:
    chaos.enqueue(40 if FULL else 10, "0.2")
    workers = [chaos.start() for _ in range(2)]
    chaos.wait_until_busy(2)
    chaos.collect_all(Every(0.05, 1, chaos.wipe, times=6 if FULL else 2, chance=chaos.chance))
    chaos.wait_until(lambda: chaos.redis.scard("rq:workers") == 2)
    chaos.settle()
    assert [worker.returncode for worker in workers] == [0, 0]


def test_redis_is_full(chaos: Chaos) -> None:
    chaos.enqueue(20, "0.05")
    workers = [chaos.start() for _ in range(2)]
    chaos.wait_until(lambda: chaos.redis.scard("rq:workers") == 2)
    used = chaos.redis.info("memory")["used_memory"]
    chaos.redis.config_set("maxmemory", used + 100_000)
    chaos.wait_until(lambda: "is full" in chaos.logs())
    # So far it may be just the next shard that finds no room. Now nothing does.
    used = chaos.redis.info("memory")["used_memory"]
    chaos.redis.config_set("maxmemory", 1)
    with pytest.raises(OutOfMemoryError):
        chaos.redis.set("more", b"x" * 10)
    # It stays so for a lease of whoever held one.
    chaos.wait_until(lambda: all(_end(chaos, lease) < time.time() for lease in chaos.leases()))
    assert [worker.poll() for worker in workers] == [None, None]
    # Room for all: how much of a scanty one is eaten by buffers is Redis's affair.
    chaos.redis.config_set("maxmemory", used + 4_000_000)
    chaos.collect_all()
    chaos.settle()
    assert "producer collect" in chaos.logs()
    assert "Traceback" not in chaos.logs()


def test_a_run_that_nobody_collects_stalls_no_other(chaos: Chaos) -> None:
    """Two workers, and a relay with room for three of its shards."""
    stale = [image_task(index, prompt="0.01", run=OTHER_RUN) for index in range(8)]
    namespace = stale[0].namespace
    chaos.store.set_limit(3 * len(shard_of(stale[0])))
    chaos.queue.enqueue_tasks(stale)
    workers = [chaos.start() for _ in range(2)]
    chaos.wait_until(lambda: chaos.logs().count("is full; waiting") == 2)
    assert len(chaos.store.record_ids(namespace)) == 3
    chaos.enqueue(8, "0.01")
    chaos.collect_all()
    # Then it goes on, and what waited in a worker's memory was not computed again.
    count = len(chaos.tasks) + len(stale)
    chaos.tasks, chaos.collected = list(stale), {}
    chaos.collect_all()
    chaos.wait_until(lambda: len(re.findall(r"image \d+: done", chaos.logs())) == count)
    assert "has no room for this run: run `producer collect`" in chaos.logs()
    assert [worker.poll() for worker in workers] == [None, None]
    chaos.settle()


def _end(chaos: Chaos, lease: bytes) -> float:
    return chaos.redis.zscore(chaos.queue.started_job_registry.key, lease) or 0.0


def test_poison_stops_no_run(chaos: Chaos) -> None:
    chaos.enqueue(10, "0.05")
    poison = image_task(99, prompt="poison")
    # Half of what it may cost before it is given up.
    for _ in range(4):
        add_event(
            chaos.redis, poison.id, Event(outcome="killed", host="h", worker="w", detail="signal SIGKILL")
        )
    chaos.queue.enqueue_tasks([poison])
    chaos.enqueue(10, "0.05")
    chaos.start("supervise", "2")
    chaos.wait_until(lambda: chaos.queue.failed_ids() == {poison.id})
    chaos.collect_all()
    events = read_events(chaos.redis, poison.id)
    assert Counter(event.outcome for event in events) == {
        "started": 4,
        "killed": 8,
    }
    crashes = [event for event in events if event.outcome == "killed"]
    assert {event.detail for event in crashes} == {"signal SIGKILL"}
    assert all(event.host for event in crashes)


def test_a_computation_that_hangs_ends_with_its_process(chaos: Chaos) -> None:
    hung = image_task(0, prompt="hang")
    chaos.queue.enqueue_tasks([hung])
    chaos.redis.hset(TaskJob.key_for(hung.id), mapping={"timeout": 1})
    chaos.start("supervise", "1")
    chaos.wait_until(lambda: chaos.queue.failed_ids() == {hung.id})
    assert read_events(chaos.redis, hung.id)[-1].detail == "the job was over its time limit"


def test_an_idle_worker_takes_a_second_copy_of_a_slow_job(chaos: Chaos) -> None:
    chaos.enqueue(8, "0.2")
    slow = chaos.start(slowness=1000)
    chaos.wait_until_busy()
    quick = chaos.start(hedge=True, host="another")
    chaos.collect_all()
    # The slow one drops its copy, and is free again.
    chaos.wait_until(lambda: "the result is dropped" in chaos.logs())
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
                workers = [
                    chaos.start(prefix=host.prefix, url=f"redis://{host.redis_address}:6379")
                    for host in (near, far)
                ]
                lose_a_job(chaos, workers[1], far.cut_off, far.reconnect)
                chaos.wait_until(lambda: late_results(chaos) > 0)
                chaos.collect_all()
                chaos.settle()
                assert [worker.returncode for worker in workers] == [0, 0]
            finally:
                chaos.close()
