"""Leases in real processes: whatever happens to a worker, its job is done once more or told as failed."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.jobs.history import read_events, read_progress
from shared.jobs.task_job import MAX_RETRIES
from tests.lease_fleet import LEASE, QUEUE, Fleet
from tests.lease_script import EXIT_FATAL
from tests.redis_process import RedisProcess
from tests.tasks import image_task, wait_until

pytestmark = pytest.mark.slow


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
    fleet.start("second")
    wait_until(lambda: fleet.is_done(task))
    assert fleet.ran() == [
        f"first starts {task.id}",
        f"second starts {task.id}",
        f"second ends {task.id}",
    ]
    job = fleet.job(task)
    assert job.return_value() == {"by": "second"}
    assert job.retries_left == MAX_RETRIES - 1
    assert fleet.queue.in_flight().ids == frozenset()
    assert "gave no sign of life" in fleet.log("second")


@pytest.mark.parametrize("prompt", ["listen", "deaf"])
def test_a_sleepers_late_result_is_dropped_and_it_lives_on(fleet: Fleet, prompt: str) -> None:
    sleeper, task = fleet.begin("sleeper", prompt)
    sleeper.send_signal(signal.SIGSTOP)
    other = fleet.start("other")
    wait_until(lambda: fleet.is_done(task))
    other.terminate()
    assert other.wait(20) == 0
    finished = fleet.redis.hgetall(f"rq:job:{task.id}")
    if prompt == "deaf":
        fleet.redis.set("wake", 1)
    sleeper.send_signal(signal.SIGCONT)
    wait_until(lambda: "the result is dropped" in fleet.log("sleeper"))
    assert fleet.job(task).return_value() == {"by": "other"}
    assert fleet.redis.hgetall(f"rq:job:{task.id}") == finished
    assert fleet.queue.in_flight().ids == frozenset()
    assert fleet.queue.failed_ids() == set()
    later = image_task(1, prompt="ok")
    fleet.queue.enqueue_tasks([later])
    wait_until(lambda: fleet.is_done(later))
    assert fleet.job(later).return_value() == {"by": "sleeper"}


def test_a_job_outlives_many_leases_while_its_worker_beats(fleet: Fleet) -> None:
    _, task = fleet.begin("first", "deaf")
    fleet.start("second")
    scores = set()

    def renewed() -> bool:
        scores.update(score for _, score in fleet.redis.zrange(f"rq:wip:{QUEUE}", 0, -1, withscores=True))
        return max(scores) - min(scores) > 1.5 * LEASE

    wait_until(renewed)
    fleet.redis.set("wake", 1)
    wait_until(lambda: fleet.is_done(task))
    assert fleet.ran() == [f"first starts {task.id}", f"first ends {task.id}"]


def test_a_job_popped_but_never_started_is_returned(fleet: Fleet) -> None:
    task = image_task(0)
    fleet.queue.enqueue_tasks([task])
    assert fleet.redis.lmove(fleet.queue.key, fleet.queue.intermediate_queue_key)
    assert fleet.queue.in_flight().ids == {task.id}
    fleet.start("first")
    wait_until(lambda: fleet.is_done(task))
    assert fleet.ran() == [f"first starts {task.id}", f"first ends {task.id}"]
    # It never began, so it did not fail.
    assert fleet.job(task).retries_left == MAX_RETRIES
    assert fleet.queue.in_flight().ids == frozenset()


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
    assert fleet.job(task).retries_left == MAX_RETRIES
    fleet.start("second")
    wait_until(lambda: fleet.is_done(task) and fleet.is_done(waiting))


def test_an_idle_worker_leaves_at_once(fleet: Fleet) -> None:
    worker = fleet.start("first")
    wait_until(lambda: fleet.redis.hget("rq:worker:first", "state") == b"idle")
    worker.terminate()
    assert worker.wait(20) == 0


def test_a_job_that_kills_its_worker_fails_after_its_retries(fleet: Fleet) -> None:
    poison, good = image_task(0, prompt="die"), image_task(1)
    fleet.queue.enqueue_tasks([poison, good])
    for attempt in range(1 + MAX_RETRIES):
        assert fleet.start(f"victim-{attempt}").wait(20) == -signal.SIGKILL
        fleet.expire_leases()
    fleet.start("survivor")
    wait_until(lambda: fleet.is_done(good) and fleet.queue.failed_ids() == {poison.id})
    assert fleet.outcomes(poison) == ["started", "crashed"] * (1 + MAX_RETRIES)
    crashes = [event for event in read_events(fleet.redis, poison.id) if event.outcome == "crashed"]
    assert [event.worker for event in crashes] == [f"victim-{attempt}" for attempt in range(4)]
    assert fleet.queue.in_flight().ids == frozenset()


def test_a_machine_that_can_not_serve_the_run_hands_back_and_leaves(fleet: Fleet) -> None:
    task = image_task(0, prompt="no model here")
    fleet.queue.enqueue_tasks([task])
    assert fleet.start("first").wait(20) == EXIT_FATAL
    assert fleet.queue.in_flight().queued == (task.id,)
    assert fleet.outcomes(task) == ["started", "handed back"]
    assert fleet.job(task).retries_left == MAX_RETRIES


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
