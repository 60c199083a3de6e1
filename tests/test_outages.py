"""What is no job's fault: Redis or the store away, a GPU or clock gone wrong, signals at the worst moment."""

import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from rq.job import JobStatus

import worker.jobs.lease_worker
from producer.jobs.workers import live_workers
from shared.errors import ClockError, StoreTroubleError
from shared.jobs.task_job import MAX_RETRIES, TaskJob
from shared.kinds.kind import Task
from tests.lease_fleet import LEASE, QUEUE, Fleet
from tests.tasks import image_task
from worker.jobs.job_context import JobContext
from worker.jobs.lease_worker import LeaseWorker
from worker.jobs.maintenance import leases_are_current, return_lost_jobs
from worker.service.process import check_clock

TASK = image_task(0)


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(redis_url, tmp_path)
    yield fleet
    fleet.close()


def new_worker(fleet: Fleet, function: Callable[[Task, JobContext], dict[str, Any]]) -> LeaseWorker:
    worker = LeaseWorker(
        QUEUE,
        connection=Redis.from_url(fleet.url),
        beat_connection=Redis.from_url(fleet.url),
        functions={"calibration": function},
        host="here",
        name=f"worker-{os.urandom(4).hex()}",
    )
    # Signal handlers are the process's, and that is pytest's.
    worker._install_signal_handlers = lambda: None  # type: ignore[method-assign]
    return worker


@pytest.mark.parametrize(
    "error", [StoreTroubleError("no route to the share"), RedisConnectionError(), OutOfMemoryError()]
)
def test_trouble_with_store_or_redis_costs_no_attempt(
    fleet: Fleet, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trouble_once(task: Task, context: JobContext) -> dict[str, Any]:
        attempts.append(time.monotonic())
        if len(attempts) == 1:
            raise error
        return {}

    attempts: list[float] = []
    monkeypatch.setattr(worker.jobs.lease_worker, "TROUBLE_SECONDS", 0.2)
    fleet.queue.enqueue_tasks([TASK])
    one = new_worker(fleet, trouble_once)
    one.work(burst=True, logging_level="CRITICAL")
    assert len(attempts) == 2
    # Not at once: a share that is away would be asked without end.
    assert attempts[1] - attempts[0] >= 0.2
    assert fleet.is_done(TASK)
    assert fleet.job(TASK).retries_left == MAX_RETRIES
    assert one.fatal is None


def test_a_metal_error_fails_the_attempt_and_ends_the_process(fleet: Fleet) -> None:
    def fail(task: Task, context: JobContext) -> dict[str, Any]:
        raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")

    fleet.queue.enqueue_tasks([TASK])
    one = new_worker(fleet, fail)
    one.work(burst=True, logging_level="CRITICAL")
    assert one.broken
    assert not one.left_in_order
    # One attempt, and the rest for a process with a GPU that works.
    assert fleet.outcomes(TASK) == ["started", "failed"]
    assert fleet.queue.in_flight().queued == (TASK.id,)
    assert fleet.job(TASK).retries_left == MAX_RETRIES - 1


def test_any_other_runtime_error_only_fails(fleet: Fleet) -> None:
    def fail(task: Task, context: JobContext) -> dict[str, Any]:
        raise RuntimeError("[metal::malloc] Attempting to allocate too much")

    fleet.queue.enqueue_tasks([TASK])
    one = new_worker(fleet, fail)
    one.work(burst=True, logging_level="CRITICAL")
    assert not one.broken
    assert fleet.queue.failed_ids() == {TASK.id}


def test_a_worker_that_slept_between_pop_and_start_leaves_the_job_to_others(fleet: Fleet) -> None:
    ran: list[str] = []
    sleeper = new_worker(fleet, lambda task, context: ran.append(task.id) or {})
    fleet.queue.enqueue_tasks([TASK])
    fleet.redis.lmove(fleet.queue.key, fleet.queue.intermediate_queue_key)
    job = sleeper.job_class.fetch(TASK.id, connection=sleeper.connection, serializer=sleeper.serializer)
    # Meanwhile others returned it.
    fleet.redis.lmove(fleet.queue.intermediate_queue_key, fleet.queue.key)
    sleeper.execute_job(job, sleeper.queues[0])
    assert ran == []
    assert fleet.queue.in_flight().started == frozenset()
    assert fleet.queue.in_flight().queued == (TASK.id,)


def test_a_worker_killed_while_it_starts_a_job_loses_it_not(fleet: Fleet) -> None:
    """Leased, and still among the popped: neither pass of maintenance may forget it."""
    fleet.queue.enqueue_tasks([TASK])
    fleet.redis.lmove(fleet.queue.key, fleet.queue.intermediate_queue_key)
    return_lost_jobs(fleet.redis, QUEUE, LEASE)
    fleet.redis.hset(f"bitfleet:stuck:{QUEUE}", TASK.id, 1)
    fleet.redis.zadd(f"rq:wip:{QUEUE}", {f"{TASK.id}:x": 2**33})
    return_lost_jobs(fleet.redis, QUEUE, LEASE)
    fleet.expire_leases()
    return_lost_jobs(fleet.redis, QUEUE, LEASE)
    assert fleet.queue.in_flight().queued == (TASK.id,)


class TestPause:
    """After an outage, those who live renew their leases before any is judged."""

    def test_comes_after_a_lease_in_which_nobody_looked(self, fleet: Fleet) -> None:
        assert not leases_are_current(fleet.redis, QUEUE, LEASE)
        assert not leases_are_current(fleet.redis, QUEUE, LEASE)
        fleet.redis.delete(f"bitfleet:watched:{QUEUE}:pause")
        assert leases_are_current(fleet.redis, QUEUE, LEASE)
        fleet.redis.delete(f"bitfleet:watched:{QUEUE}")
        assert not leases_are_current(fleet.redis, QUEUE, LEASE)

    def test_lasts_for_half_a_lease(self, fleet: Fleet) -> None:
        leases_are_current(fleet.redis, QUEUE, LEASE)
        watched = f"bitfleet:watched:{QUEUE}"
        assert LEASE * 250 < fleet.redis.pttl(f"{watched}:pause") <= LEASE * 500
        assert LEASE * 500 < fleet.redis.pttl(watched) <= LEASE * 1000

    def test_keeps_leases_that_ran_out(self, fleet: Fleet) -> None:
        fleet.queue.enqueue_tasks([TASK])
        fleet.redis.delete(fleet.queue.key)
        fleet.redis.hset(TaskJob.key_for(TASK.id), "status", JobStatus.STARTED)
        fleet.redis.zadd(f"rq:wip:{QUEUE}", {f"{TASK.id}:x": 1})
        one = new_worker(fleet, lambda task, context: {})
        one.register_birth()
        one._maintain(one.connection)
        assert fleet.queue.in_flight().started == {TASK.id}
        fleet.redis.delete(f"bitfleet:watched:{QUEUE}:pause")
        one._maintain(one.connection)
        assert fleet.queue.in_flight().queued == (TASK.id,)


def test_a_wiped_redis_knows_the_worker_again_after_a_beat(fleet: Fleet) -> None:
    one = new_worker(fleet, lambda task, context: {})
    one.register_birth()
    fleet.redis.flushall()
    one._maintain(one.connection)
    assert fleet.redis.smembers(f"rq:workers:{QUEUE}") == {one.key.encode()}
    assert {b"hostname", b"last_heartbeat", b"state"} <= fleet.redis.hgetall(one.key).keys()
    assert 0 < fleet.redis.ttl(one.key) < 100


def test_a_worker_that_computes_for_long_is_not_silent(fleet: Fleet) -> None:
    one = new_worker(fleet, lambda task, context: {})
    one.register_birth()
    one.last_heartbeat -= timedelta(minutes=10)
    one._maintain(one.connection)
    (info,) = live_workers(fleet.redis, "relay")
    assert info.seconds_silent < 60


@pytest.mark.parametrize(("seconds", "word"), [(100, "ahead of"), (-100, "behind")])
def test_a_wrong_clock_is_refused(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, seconds: int, word: str
) -> None:
    check_clock(fleet.redis, 45)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + seconds)
    with pytest.raises(ClockError, match=f"100 s {word} that of Redis"):
        check_clock(fleet.redis, 45)
