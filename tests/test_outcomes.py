"""What becomes of a job: done, failed with its history, handed back, or left to another worker."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis
from rq.exceptions import DequeueTimeout, StopRequested

from shared.errors import (
    LeaseLostError,
    MachineTooSmallError,
    ModelUnavailableError,
    RunMismatchError,
    ShardCorruptError,
    TaskRefusedError,
    TooLargeError,
    WrongStoreError,
)
from shared.jobs.history import read_events
from shared.kinds.kind import Task
from tests.lease_fleet import QUEUE, Fleet
from tests.tasks import SETTINGS, image_task, layer_task, wait_until
from worker.jobs.job_context import HandBackError, JobContext
from worker.jobs.lease_worker import LeaseWorker


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(redis_url, tmp_path)
    yield fleet
    fleet.close()


Behaviour = Callable[[Task, JobContext], dict[str, Any]]


@pytest.fixture
def work(fleet: Fleet) -> Callable[..., LeaseWorker]:
    """Run all that is queued in this process, every task by the function given."""

    def act(function: Behaviour, beat_seconds: float = 5, alone: bool = False) -> LeaseWorker:
        worker = LeaseWorker(
            QUEUE,
            connection=Redis.from_url(fleet.url),
            beat_connection=Redis.from_url(fleet.url),
            functions={"calibration": function, "sensitivity": function},
            host="here",
            name=f"worker-{os.urandom(4).hex()}",
            lease_seconds=30,
            beat_seconds=beat_seconds,
            alone=alone,
        )
        # Signal handlers are the process's, and that is pytest's.
        worker._install_signal_handlers = lambda: None  # type: ignore[method-assign]
        worker.work(burst=True, logging_level="CRITICAL")
        return worker

    return act


TASK = image_task(0)


@pytest.mark.usefixtures("quick_retries")
def test_a_failing_tasks_traceback_is_in_its_history(fleet: Fleet, work: Any) -> None:
    def draw_the_image(task: Task, context: JobContext) -> dict[str, Any]:
        raise ValueError("no such colour")

    fleet.queue.enqueue_tasks([TASK, image_task(1)])
    work(draw_the_image)
    assert fleet.queue.failed_ids() == {TASK.id, image_task(1).id}
    events = read_events(fleet.redis, TASK.id)
    assert [event.outcome for event in events] == ["started", "failed"] * 4
    assert "in draw_the_image" in events[-1].detail
    assert events[-1].detail.endswith("ValueError: no such colour\n")
    assert all(event.host == "here" and event.at for event in events)


@pytest.mark.usefixtures("quick_retries")
def test_a_failure_is_forgotten_once_the_task_is_done(fleet: Fleet, work: Any) -> None:
    attempts = []

    def fails_once(task: Task, context: JobContext) -> dict[str, Any]:
        attempts.append(task.id)
        if len(attempts) == 1:
            raise ValueError("once")
        return {"outcome": "stored"}

    fleet.queue.enqueue_tasks([TASK])
    work(fails_once)
    assert attempts == [TASK.id] * 2
    assert fleet.is_done(TASK)
    assert read_events(fleet.redis, TASK.id) == []


@pytest.mark.parametrize("kind", [TaskRefusedError, ShardCorruptError, TooLargeError])
def test_what_no_machine_ever_will_is_not_tried_again(fleet: Fleet, work: Any, kind: Any) -> None:
    def hopeless(task: Task, context: JobContext) -> dict[str, Any]:
        raise kind("never")

    fleet.queue.enqueue_tasks([TASK])
    work(hopeless)
    assert fleet.queue.failed_ids() == {TASK.id}
    assert [event.detail for event in read_events(fleet.redis, TASK.id)] == ["", "never"]


NOT_HERE = [
    ModelUnavailableError("not here"),
    RunMismatchError("not here"),
    WrongStoreError("not here"),
    MachineTooSmallError("not here"),
    MemoryError("not here"),
]
OTHER_RUN = image_task(0, run=msgspec.structs.replace(SETTINGS, seed=1))


@pytest.mark.parametrize("error", NOT_HERE, ids=lambda error: type(error).__name__)
def test_what_this_machine_can_not_keeps_its_place_and_all_else_goes_on(
    fleet: Fleet, work: Any, error: Exception
) -> None:
    ran = []

    def elsewhere(task: Task, context: JobContext) -> dict[str, Any]:
        ran.append(task.id)
        if task.namespace == TASK.namespace:
            raise error
        return {}

    fleet.queue.enqueue_tasks([TASK, image_task(1), OTHER_RUN, layer_task(run=OTHER_RUN.run)])
    worker = work(elsewhere)
    # One was tried; by its group the others are known before they are fetched.
    assert ran == [TASK.id, OTHER_RUN.id, layer_task().id]
    assert worker.fatal is None
    assert "not here" in worker.set_aside.reasons()[0]
    assert fleet.queue.in_flight().queued == (TASK.id, image_task(1).id)
    assert fleet.queue.in_flight().started == frozenset()
    assert fleet.attempts(TASK) == 0
    assert fleet.outcomes(TASK) == ["started", "handed back"]


@pytest.mark.parametrize("error", NOT_HERE, ids=lambda error: type(error).__name__)
def test_a_worker_that_is_alone_leaves_over_it(fleet: Fleet, work: Any, error: Exception) -> None:
    def elsewhere(task: Task, context: JobContext) -> dict[str, Any]:
        raise error

    fleet.queue.enqueue_tasks([TASK, OTHER_RUN])
    worker = work(elsewhere, alone=True)
    assert "not here" in worker.fatal
    assert fleet.queue.in_flight().queued == (TASK.id, OTHER_RUN.id)
    assert fleet.attempts(TASK) == 0


def test_alone_a_gpu_that_ran_out_of_memory_is_tried_again_in_a_new_process(fleet: Fleet, work: Any) -> None:
    def fail(task: Task, context: JobContext) -> dict[str, Any]:
        raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")

    fleet.queue.enqueue_tasks([TASK])
    worker = work(fail, alone=True)
    assert worker.broken
    assert worker.fatal is None
    assert fleet.outcomes(TASK) == ["started", "failed"]


def test_no_except_exception_in_a_task_swallows_handing_back() -> None:
    assert not issubclass(HandBackError, Exception)
    context = JobContext(confirm=lambda: None, hand_back=True)
    with pytest.raises(HandBackError):
        context.check("step")


def test_a_lost_lease_is_confirmed_before_it_is_believed() -> None:
    def gone() -> None:
        raise LeaseLostError("gone")

    with pytest.raises(LeaseLostError):
        JobContext(confirm=gone, lost=True).check("step")
    context = JobContext(confirm=lambda: None, lost=True)
    context.check("step")
    assert not context.lost
    assert context.progress == "step"


def test_a_job_given_to_another_meanwhile_is_left_alone(fleet: Fleet, work: Any) -> None:
    """The lease vanishes while the function runs: neither its result nor its failure may count."""

    def robbed(task: Task, context: JobContext) -> dict[str, Any]:
        fleet.redis.delete(f"rq:wip:{QUEUE}")
        before.update(fleet.redis.hgetall(f"rq:job:{task.id}"))
        if task.id == TASK.id:
            raise ValueError("late")
        return {"outcome": "late"}

    before: dict[bytes, bytes] = {}
    for task in (TASK, image_task(1)):
        fleet.queue.enqueue_tasks([task])
        work(robbed)
        assert fleet.redis.hgetall(f"rq:job:{task.id}") == before
        assert fleet.queue.failed_ids() == set()
        assert fleet.queue.finished_job_registry.get_job_ids(cleanup=False) == []


def test_a_burst_that_is_over_leaves_in_order(fleet: Fleet, work: Any) -> None:
    assert work(lambda task, context: {}).exited_cleanly
    fleet.queue.enqueue_tasks([TASK])
    assert work(lambda task, context: {}).exited_cleanly


def test_an_error_in_the_worker_itself_is_no_order(
    fleet: Fleet, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RQ logs it and returns as if all were done."""

    def broken(*args: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(LeaseWorker, "_take", broken)
    fleet.queue.enqueue_tasks([TASK])
    assert not work(lambda task, context: {}).exited_cleanly


def test_an_error_in_maintenance_does_not_end_the_beat(
    fleet: Fleet, work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = []

    def broken(worker: LeaseWorker, redis: Redis) -> None:
        # The main thread cleans too, with its own connection, when it starts.
        if redis is worker.connection:
            return
        beats.append(worker)
        raise TypeError("a bug")

    monkeypatch.setattr(LeaseWorker, "_maintain", broken)
    fleet.queue.enqueue_tasks([TASK])
    work(lambda task, context: wait_until(lambda: len(beats) > 2) or {}, beat_seconds=0.02)
    assert fleet.is_done(TASK)


def test_an_idle_worker_leaves_though_the_signals_exception_was_swallowed(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logging, and what else lets no exception through, may be at work when the signal comes."""
    worker = LeaseWorker(
        QUEUE,
        connection=Redis.from_url(redis_url),
        beat_connection=Redis.from_url(redis_url),
        functions={},
        host="here",
        name="idle",
    )
    worker._install_signal_handlers = lambda: None  # type: ignore[method-assign]
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def signalled_meanwhile(*_: object, **__: object) -> None:
        with contextlib.suppress(StopRequested):
            worker.request_stop(signal.SIGTERM, None)
        raise DequeueTimeout(1, QUEUE)

    monkeypatch.setattr(worker.queue_class, "dequeue_any", signalled_meanwhile)
    worker.work(logging_level="CRITICAL")
    assert worker.exited_cleanly
