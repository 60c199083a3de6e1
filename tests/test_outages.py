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

import worker.jobs.lease_worker
from shared.errors import StoreTroubleError
from shared.jobs.task_queue import TaskQueue
from shared.jobs.workers import live_workers
from shared.kinds.kind import Task
from tests.lease_fleet import QUEUE, Fleet
from tests.tasks import image_task
from worker.jobs.job_context import JobContext
from worker.jobs.lease_scripts import take_job
from worker.jobs.lease_worker import LeaseWorker
from worker.jobs.post_mortem import report_death
from worker.service.process import clock_warning

TASK = image_task(0)
METAL = "[METAL] Command buffer execution failed: "


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(redis_url, tmp_path)
    yield fleet
    fleet.close()


def new_worker(fleet: Fleet, function: Callable[[Task, JobContext], Any]) -> LeaseWorker:
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
    assert fleet.attempts(TASK) == 0
    assert one.fatal is None


def test_a_gpu_that_failed_costs_an_attempt_and_the_process(fleet: Fleet) -> None:
    def fail(task: Task, context: JobContext) -> dict[str, Any]:
        raise RuntimeError(f"{METAL}Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)")

    fleet.queue.enqueue_tasks([TASK])
    one = new_worker(fleet, fail)
    one.work(burst=True, logging_level="CRITICAL")
    assert one.broken
    assert not one.exited_cleanly
    # One attempt, and the rest for a process with a GPU that works.
    assert fleet.outcomes(TASK) == ["started", "failed"]
    assert fleet.queue.in_flight().queued == (TASK.id,)
    assert fleet.attempts(TASK) == 1


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("[metal::malloc] Resource limit (499000) exceeded.", False),
        (f"{METAL}Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)", True),
    ],
)
def test_too_little_memory_costs_no_attempt(fleet: Fleet, text: str, broken: bool) -> None:
    def fail(task: Task, context: JobContext) -> dict[str, Any]:
        raise RuntimeError(text)

    fleet.queue.enqueue_tasks([TASK])
    one = new_worker(fleet, fail)
    one.work(burst=True, logging_level="CRITICAL")
    assert one.broken == broken
    assert one.exited_cleanly != broken
    assert fleet.outcomes(TASK) == ["started", "handed back"]
    assert fleet.queue.in_flight().queued == (TASK.id,)
    assert fleet.attempts(TASK) == 0


@pytest.mark.usefixtures("quick_retries")
def test_any_other_runtime_error_only_fails(fleet: Fleet) -> None:
    def fail(task: Task, context: JobContext) -> dict[str, Any]:
        raise RuntimeError("[matmul] Last dimension of first input with shape (2,3) must match")

    fleet.queue.enqueue_tasks([TASK])
    one = new_worker(fleet, fail)
    one.work(burst=True, logging_level="CRITICAL")
    assert not one.broken
    assert fleet.queue.failed_ids() == {TASK.id}


def test_a_worker_that_slept_before_it_took_a_job_leaves_it_to_others(fleet: Fleet) -> None:
    ran: list[str] = []
    sleeper = new_worker(fleet, lambda task, context: ran.append(task.id) or {})
    fleet.queue.enqueue_tasks([TASK])
    job, queue = TaskQueue.dequeue_any(
        sleeper.queues, None, sleeper.connection, sleeper.job_class, sleeper.serializer
    )  # type: ignore[misc]
    fleet.redis.lpop(fleet.queue.key)
    before = fleet.redis.hgetall(job.key)
    sleeper.execute_job(job, queue)
    assert ran == []
    assert fleet.queue.in_flight().ids == frozenset()
    assert fleet.redis.hgetall(job.key) == before
    assert fleet.outcomes(TASK) == []
    assert sleeper.get_state() == "idle"


def test_an_answer_that_was_lost_with_the_connection_is_given_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py then sends the command again: the job that is taken already is ours nevertheless."""

    def twice(*arguments: Any) -> bool:
        take_job(*arguments)
        return take_job(*arguments)

    monkeypatch.setattr(worker.jobs.lease_worker, "take_job", twice)
    fleet.queue.enqueue_tasks([TASK])
    ran: list[list[str]] = []
    one = new_worker(fleet, lambda task, context: ran.append(fleet.outcomes(TASK)) or {})
    one.work(burst=True, logging_level="CRITICAL")
    assert ran == [["started"]]
    assert fleet.is_done(TASK)


def test_a_job_that_an_error_interrupts_is_returned_by_the_supervisor(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in the worker itself: its process ends, and takes its leave from RQ."""

    def broken(*_: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(LeaseWorker, "_finalize_failure", broken)
    fleet.queue.enqueue_tasks([TASK])
    one = new_worker(fleet, lambda task, context: 1 / 0)
    one.work(burst=True, logging_level="CRITICAL")
    assert not one.exited_cleanly
    assert fleet.queue.in_flight().started == {TASK.id}
    report_death(fleet.url, QUEUE, one.name, 1)
    assert fleet.queue.in_flight().queued == (TASK.id,)
    assert fleet.outcomes(TASK) == ["started", "crashed"]


def test_a_second_signal_counts_while_the_first_is_dealt_with(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = new_worker(fleet, lambda task, context: {})
    one._state = "busy"

    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        monkeypatch.setattr("signal.signal", lambda *_: None)
        one.request_stop(2, None)

    monkeypatch.setattr("signal.signal", interrupted)
    one.request_stop(15, None)
    assert one._context.hand_back


def test_after_an_outage_leases_that_ran_out_are_left_alone_for_a_while(fleet: Fleet) -> None:
    fleet.start_by_hand(TASK, "x", until=time.time() - 1)
    one = new_worker(fleet, lambda task, context: {})
    one.register_birth()
    one._maintain(one.connection)
    assert fleet.queue.in_flight().started == {TASK.id}
    grace = f"bitfleet:grace:{QUEUE}"
    fleet.redis.set(grace, float(fleet.redis.get(grace)) - one.lease_seconds / 2)
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
    (info,) = live_workers(fleet.queue)
    assert info.seconds_silent < 60


@pytest.mark.parametrize(("seconds", "word"), [(100, "ahead of"), (-100, "behind")])
def test_a_wrong_clock_is_told(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, seconds: int, word: str
) -> None:
    assert clock_warning(fleet.redis) is None
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + seconds)
    assert f"100 s {word} that of Redis" in str(clock_warning(fleet.redis))
