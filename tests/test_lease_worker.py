"""Leases in real processes: whatever happens to a worker, its job is done once more or told as failed."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from shared.jobs.history import Event, add_event, read_progress
from shared.jobs.task_queue import avoid_key
from tests.chaos import FULL
from tests.lease_fleet import QUEUE, ROOT, Fleet
from tests.lease_script import EXIT_BROKEN
from tests.redis_process import RedisProcess
from tests.tasks import SETTINGS, image_task, wait_until
from worker.jobs.verdict import MAX_SILENCES

pytestmark = pytest.mark.slow

OTHER_RUN = msgspec.structs.replace(SETTINGS, seed=1)


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(redis_url, tmp_path)
    yield fleet
    fleet.close()


def test_a_killed_workers_job_is_done_by_another(fleet: Fleet) -> None:
    first, task = fleet.begin("first", "listen")
    first.kill()
    first.wait()
    assert fleet.queue.in_flight().started == {task.id}
    lease = fleet.lease()
    fleet.start("second")
    fleet.end_lease(lease)
    wait_until(lambda: fleet.is_done(task))
    assert fleet.ran() == [
        f"first starts {task.id}",
        f"second starts {task.id}",
        f"second ends {task.id}",
    ]
    job = fleet.job(task)
    assert job.return_value() == {"by": "second"}
    # What became of it before is forgotten.
    assert fleet.outcomes(task) == []
    assert fleet.queue.in_flight().ids == frozenset()
    assert "gave no sign of life" in fleet.log("second")


@pytest.mark.parametrize("prompt", ["listen", "deaf"])
def test_a_sleepers_late_result_is_dropped_and_it_lives_on(fleet: Fleet, prompt: str) -> None:
    sleeper, task = fleet.begin("sleeper", prompt)
    sleeper.send_signal(signal.SIGSTOP)
    lease = fleet.lease()
    other = fleet.start("other")
    fleet.end_lease(lease)
    wait_until(lambda: fleet.is_done(task))
    other.terminate()
    assert other.wait(20) == 0
    finished = fleet.redis.hgetall(f"rq:job:{task.id}")
    if prompt == "deaf":
        fleet.redis.set("wake", 1)
    sleeper.send_signal(signal.SIGCONT)
    wait_until(lambda: "the result is dropped" in fleet.log("sleeper"))
    assert ": done" not in fleet.log("sleeper")
    assert fleet.job(task).return_value() == {"by": "other"}
    assert fleet.redis.hgetall(f"rq:job:{task.id}") == finished
    assert fleet.queue.in_flight().ids == frozenset()
    assert fleet.queue.failed_ids() == set()
    later = image_task(1, prompt="ok")
    fleet.queue.enqueue_tasks([later])
    wait_until(lambda: fleet.is_done(later))
    assert fleet.job(later).return_value() == {"by": "sleeper"}


def test_a_lease_is_renewed_while_its_worker_beats(fleet: Fleet) -> None:
    _, task = fleet.begin("first", "deaf")
    fleet.start("second")
    leases = fleet.queue.started_job_registry.key
    lease = fleet.lease()
    for _ in range(3):
        # An end that no worker would write, and that is not over yet.
        fleet.redis.zadd(leases, {lease: 2**33}, xx=True)
        wait_until(lambda: fleet.redis.zscore(leases, lease) != 2**33)
    fleet.redis.set("wake", 1)
    wait_until(lambda: fleet.is_done(task))
    assert fleet.ran() == [f"first starts {task.id}", f"first ends {task.id}"]


@pytest.mark.chaos
@pytest.mark.parametrize("who", ["supervised", "alone"])
@pytest.mark.parametrize("what", ["done", *(["failed", "handed back"] if FULL else [])])
def test_a_worker_may_die_at_any_command(redis_url: str, what: str, who: str) -> None:
    """Just before or just after any that it sends to Redis: its job waits again, or is done.

    At once when a supervisor looks after the worker; on a machine that is gone, when a lease is over.
    """
    command = [sys.executable, "-m", "tests.kill_points", redis_url, what, who]
    deaths = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    first, *rest, last = [json.loads(line) for line in deaths.splitlines()]
    assert first["died"] == last["died"] == ""
    assert len(rest) > 80
    for death in rest:
        where = f"died {death['died']}: {death}"
        assert not death["leased"], where
        assert death["status"] == ("queued" if death["waits"] else "finished"), where
    if what == "handed back":
        return
    # An attempt is noted from the one step on that takes the job.
    taken = [death["attempts"] for death in rest if death["waits"]]
    assert taken == sorted(taken)
    assert set(taken) == {0, 1}


def test_one_sigterm_finishes_the_job_and_takes_no_other(fleet: Fleet) -> None:
    worker, task = fleet.begin("first", "listen")
    waiting = image_task(1)
    fleet.queue.enqueue_tasks([waiting])
    worker.terminate()
    wait_until(lambda: "stopping after this job" in fleet.log("first"))
    assert worker.poll() is None
    fleet.redis.set("wake", 1)
    assert worker.wait(20) == 0
    assert fleet.is_done(task)
    assert fleet.queue.in_flight().queued == (waiting.id,)
    assert fleet.redis.smembers("rq:workers") == set()


def test_two_sigterms_hand_the_job_back(fleet: Fleet) -> None:
    worker, task = fleet.begin("first", "listen")
    waiting = image_task(1)
    fleet.queue.enqueue_tasks([waiting])
    worker.terminate()
    wait_until(lambda: "stopping after this job" in fleet.log("first"))
    worker.terminate()
    assert worker.wait(20) == 0
    # At the front, and no try is lost by it.
    assert fleet.queue.in_flight().queued == (task.id, waiting.id)
    assert fleet.queue.in_flight().started == frozenset()
    assert fleet.outcomes(task) == ["started", "handed back"]
    assert fleet.attempts(task) == 0
    fleet.start("second")
    wait_until(lambda: fleet.is_done(task) and fleet.is_done(waiting))


def test_an_idle_worker_leaves_at_once(fleet: Fleet) -> None:
    worker = fleet.start("first")
    wait_until(lambda: fleet.redis.hget("rq:worker:first", "state") == b"idle")
    worker.terminate()
    assert worker.wait(20) == 0


def test_a_job_whose_machines_fall_silent_is_tried_many_times_and_not_for_ever(fleet: Fleet) -> None:
    poison, good = image_task(0, prompt="die"), image_task(1)
    silence = Event(outcome="silent", host="victim", worker="victim-1", detail="for a test")
    fleet.queue.enqueue_tasks([poison, good])
    for _ in range(MAX_SILENCES - 2):
        add_event(fleet.redis, poison.id, silence)
    for name in ("victim-2", "victim-3"):
        assert fleet.start(name).wait(20) == -signal.SIGKILL
        fleet.expire_leases()
    # No supervisor was there to see how the last two ended.
    fleet.start("survivor")
    wait_until(lambda: fleet.is_done(good) and fleet.queue.failed_ids() == {poison.id})
    assert fleet.attempts(poison) == 0
    assert fleet.outcomes(poison).count("silent") == MAX_SILENCES
    assert fleet.queue.in_flight().ids == frozenset()


def test_a_run_that_no_machine_can_serve_stops_no_other(fleet: Fleet) -> None:
    strange = [image_task(index, prompt="no model here") for index in range(3)]
    normal = [image_task(index, prompt="ok", run=OTHER_RUN) for index in range(6)]
    fleet.queue.enqueue_tasks([*strange, *normal])
    workers = [fleet.start(name) for name in ("one", "two", "three")]
    wait_until(lambda: all(fleet.is_done(task) for task in normal))
    # Each machine finds out, by one job, says so once, and stays.
    names = ("one", "two", "three")
    wait_until(lambda: all("can't do the images of" in fleet.log(name) for name in names))
    assert [fleet.log(name).count("can't do the images of") for name in names] == [1, 1, 1]
    assert sum(SETTINGS.id in line for line in fleet.ran()) == 3
    assert all(worker.poll() is None for worker in workers)
    assert set(fleet.queue.in_flight().queued) == {task.id for task in strange}
    assert all(fleet.attempts(task) == 0 for task in strange)
    # It is still at work.
    later = image_task(9, prompt="ok", run=OTHER_RUN)
    fleet.queue.enqueue_tasks([later])
    wait_until(lambda: fleet.is_done(later))


def test_a_second_run_is_not_starved_by_a_first_of_many_tasks(fleet: Fleet) -> None:
    first = [image_task(index, prompt="ok") for index in range(100)]
    second = [image_task(index, prompt="ok", run=OTHER_RUN) for index in range(5)]
    for name in ("one", "two"):
        fleet.start(name)
    wait_until(lambda: fleet.redis.scard(f"rq:workers:{QUEUE}") == 2)
    fleet.queue.enqueue_tasks([*first, *second])
    wait_until(lambda: not fleet.queue.in_flight().ids)
    ended = [line.split()[-1] for line in fleet.ran() if " ends " in line]
    assert sorted(ended) == sorted(task.id for task in (*first, *second))
    assert max(ended.index(task.id) for task in second) < 50


@pytest.mark.parametrize("prompt", ["large", "long"])
def test_what_one_small_machine_can_not_do_the_others_do(fleet: Fleet, prompt: str) -> None:
    tasks = [image_task(index, prompt=prompt) for index in range(4)]
    small_ones = [image_task(index, prompt="ok", run=OTHER_RUN) for index in range(2)]
    fleet.queue.enqueue_tasks([*tasks, *small_ones])
    small = fleet.start("small-1")
    if prompt == "long":
        # Its GPU failed: it leaves, and the process that replaces it doesn't try the same again.
        assert small.wait(20) == EXIT_BROKEN
        small = fleet.start("small-2")
    wait_until(lambda: all(fleet.is_done(task) for task in small_ones))
    assert fleet.queue.in_flight().queued == tuple(task.id for task in tasks)
    fleet.start("large-1")
    wait_until(lambda: all(fleet.is_done(task) for task in tasks))
    assert small.poll() is None
    tried = [line for line in fleet.ran() if line.startswith("small-") and "starts" in line]
    assert tried[0] == f"small-1 starts {tasks[0].id}"
    assert len(tried) == 1 + len(small_ones)
    assert fleet.queue.failed_ids() == set()
    assert all(fleet.attempts(task) == 0 for task in tasks)
    assert all(fleet.job(task).return_value() == {"by": "large-1"} for task in tasks)


def test_a_broken_machine_loses_no_task_and_sets_itself_aside(fleet: Fleet) -> None:
    bad, good = fleet.start("bad-1"), fleet.start("good-1")
    wait_until(lambda: fleet.redis.scard(f"rq:workers:{QUEUE}") == 2)
    tasks = [image_task(index, prompt="not on bad") for index in range(12)]
    fleet.queue.enqueue_tasks(tasks)
    # The good one is busy meanwhile.
    wait_until(lambda: "can't do the images" in fleet.log("bad-1"))
    assert "several in a row failed here, the last one: ValueError: a library" in fleet.log("bad-1")
    failed = [task for task in tasks if fleet.attempts(task)]
    assert len(failed) == 3
    # They wait for the other host, without being asked for again here.
    assert all(fleet.redis.get(avoid_key(task.id)) == b"bad" for task in failed)
    fleet.redis.set("wake", 1)
    wait_until(lambda: all(fleet.is_done(task) for task in tasks))
    assert [line for line in fleet.ran() if line.startswith("bad-1 ends")] == []
    assert fleet.queue.failed_ids() == set()
    assert [bad.poll(), good.poll()] == [None, None]


def test_progress_is_told_while_it_runs(fleet: Fleet) -> None:
    _, task = fleet.begin("first", "listen")
    wait_until(lambda: task.id in read_progress(fleet.redis, QUEUE))
    assert read_progress(fleet.redis, QUEUE)[task.id].text == "step 1 of 2"
    fleet.redis.set("wake", 1)
    wait_until(lambda: fleet.is_done(task))
    wait_until(lambda: read_progress(fleet.redis, QUEUE) == {})


def test_a_redis_that_is_killed_and_comes_back(own_redis: RedisProcess, tmp_path: Path) -> None:
    fleet = Fleet(own_redis.url, tmp_path)
    try:
        worker, task = fleet.begin("first", "deaf")
        wait_until(lambda: fleet.redis.info("persistence")["aof_pending_bio_fsync"] == 0)
        own_redis.kill()
        own_redis.start()
        fleet.redis.set("wake", 1)
        wait_until(lambda: fleet.is_done(task))
        assert worker.poll() is None
        assert fleet.job(task).return_value() == {"by": "first"}
        later = image_task(1)
        fleet.queue.enqueue_tasks([later])
        wait_until(lambda: fleet.is_done(later))
    finally:
        fleet.close()


def test_a_withdrawn_job_leaves_no_result_and_its_worker_lives_on(fleet: Fleet) -> None:
    _, task = fleet.begin("one", "deaf")
    fleet.queue.withdraw([task.id])
    following = image_task(1)
    fleet.queue.enqueue_tasks([following])
    fleet.redis.set("wake", 1)
    wait_until(lambda: fleet.is_done(following))
    assert not fleet.redis.exists(f"rq:job:{task.id}")
    assert fleet.queue.in_flight().ids == frozenset()
    assert "the lease was lost while computing; the result is dropped" in fleet.log("one")
