"""Leases: whatever happens to a worker, its job is done once more or told as failed, and counted once."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq.job import Job, JobStatus

from shared.errors import (
    LeaseLostError,
    ModelUnavailableError,
    RunMismatchError,
    ShardCorruptError,
    TaskRefusedError,
    WrongStoreError,
)
from shared.history import read_events, read_progress
from shared.jobs import MAX_RETRIES, TaskJob
from shared.task_queue import TaskQueue, queue_name
from shared.tasks import Task
from tests.lease_script import EXIT_FATAL
from tests.redis_process import RedisProcess
from tests.tasks import image_task, wait_until
from worker.job_context import HandBackError, JobContext
from worker.lease_worker import LeaseWorker
from worker.maintenance import return_lost_jobs

ROOT = Path(__file__).parent.parent
QUEUE = queue_name("relay")
LEASE = 2


class Fleet:
    """A queue, and worker processes for it that are gone when the test is."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.redis = url, Redis.from_url(url)
        self.queue = TaskQueue(QUEUE, self.redis)
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str) -> subprocess.Popen[bytes]:
        with (self._folder / name).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.lease_script", self.url, name, str(LEASE)],
                cwd=ROOT,
                stderr=log,
            )
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.redis.close()

    def log(self, name: str) -> str:
        return (self._folder / name).read_text()

    def ran(self) -> list[str]:
        return [line.decode() for line in self.redis.lrange("ran", 0, -1)]

    def job(self, task: Task) -> Job:
        return TaskJob.fetch(task.id, connection=self.redis, serializer=self.queue.serializer)

    def outcomes(self, task: Task) -> list[str]:
        return [event.outcome for event in read_events(self.redis, task.id)]

    def is_done(self, task: Task) -> bool:
        return self.job(task).get_status() == JobStatus.FINISHED

    def begin(self, name: str, prompt: str) -> tuple[subprocess.Popen[bytes], Task]:
        """A worker in the middle of a task."""
        task = image_task(0, prompt=prompt)
        self.queue.enqueue_tasks([task])
        process = self.start(name)
        wait_until(lambda: f"{name} starts {task.id}" in self.ran())
        return process, task

    def expire_leases(self) -> None:
        """As if the lease's seconds were over."""
        for entry in self.redis.zrange(f"rq:wip:{QUEUE}", 0, -1):
            self.redis.zadd(f"rq:wip:{QUEUE}", {entry: 1})


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(redis_url, tmp_path)
    yield fleet
    fleet.close()


@pytest.mark.slow
class TestProcesses:
    def test_a_killed_workers_job_is_done_by_another(self, fleet: Fleet) -> None:
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
    def test_a_sleepers_late_result_is_dropped_and_it_lives_on(self, fleet: Fleet, prompt: str) -> None:
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

    def test_a_job_outlives_many_leases_while_its_worker_beats(self, fleet: Fleet) -> None:
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

    def test_a_job_popped_but_never_started_is_returned(self, fleet: Fleet) -> None:
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

    def test_one_sigterm_finishes_the_job_and_takes_no_other(self, fleet: Fleet) -> None:
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

    def test_two_sigterms_hand_the_job_back(self, fleet: Fleet) -> None:
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

    def test_an_idle_worker_leaves_at_once(self, fleet: Fleet) -> None:
        worker = fleet.start("first")
        wait_until(lambda: fleet.redis.hget("rq:worker:first", "state") == b"idle")
        worker.terminate()
        assert worker.wait(20) == 0

    def test_a_job_that_kills_its_worker_fails_after_its_retries(self, fleet: Fleet) -> None:
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

    def test_a_machine_that_can_not_serve_the_run_hands_back_and_leaves(self, fleet: Fleet) -> None:
        task = image_task(0, prompt="no model here")
        fleet.queue.enqueue_tasks([task])
        assert fleet.start("first").wait(20) == EXIT_FATAL
        assert fleet.queue.in_flight().queued == (task.id,)
        assert fleet.outcomes(task) == ["started", "handed back"]
        assert fleet.job(task).retries_left == MAX_RETRIES

    def test_progress_is_told_while_it_runs(self, fleet: Fleet) -> None:
        _, task = fleet.begin("first", "listen")
        wait_until(lambda: task.id in read_progress(fleet.redis, QUEUE))
        assert read_progress(fleet.redis, QUEUE)[task.id].text == "step 1 of 2"
        fleet.redis.set("wake", 1)
        wait_until(lambda: fleet.is_done(task))
        wait_until(lambda: read_progress(fleet.redis, QUEUE) == {})

    def test_a_redis_that_is_killed_and_comes_back(self, own_redis: RedisProcess, tmp_path: Path) -> None:
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


Behaviour = Callable[[Task, JobContext], dict[str, Any]]


@pytest.fixture
def work(fleet: Fleet) -> Callable[..., LeaseWorker]:
    """Run all that is queued in this process, every task by the function given."""

    def act(function: Behaviour, beat_seconds: float = 5) -> LeaseWorker:
        worker = LeaseWorker(
            QUEUE,
            connection=Redis.from_url(fleet.url),
            beat_connection=Redis.from_url(fleet.url),
            functions={"calibrate": function, "measure": function},
            host="here",
            name=f"worker-{os.urandom(4).hex()}",
            lease_seconds=30,
            beat_seconds=beat_seconds,
        )
        # Signal handlers are the process's, and that is pytest's.
        worker._install_signal_handlers = lambda: None  # type: ignore[method-assign]
        worker.work(burst=True, logging_level="CRITICAL")
        return worker

    return act


TASK = image_task(0)


class TestFailures:
    def test_a_failing_tasks_traceback_is_in_its_history(self, fleet: Fleet, work: Any) -> None:
        def draw_the_image(task: Task, context: JobContext) -> dict[str, Any]:
            raise ValueError("no such colour")

        fleet.queue.enqueue_tasks([TASK, image_task(1)])
        work(draw_the_image)
        assert fleet.queue.failed_ids() == {TASK.id, image_task(1).id}
        events = read_events(fleet.redis, TASK.id)
        assert [event.outcome for event in events] == ["started", "failed"] * (1 + MAX_RETRIES)
        assert "in draw_the_image" in events[-1].detail
        assert events[-1].detail.endswith("ValueError: no such colour\n")
        assert all(event.host == "here" and event.at for event in events)

    def test_a_failure_is_forgotten_once_the_task_is_done(self, fleet: Fleet, work: Any) -> None:
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

    @pytest.mark.parametrize("kind", [TaskRefusedError, ShardCorruptError])
    def test_what_no_machine_ever_will_is_not_tried_again(self, fleet: Fleet, work: Any, kind: Any) -> None:
        def hopeless(task: Task, context: JobContext) -> dict[str, Any]:
            raise kind("never")

        fleet.queue.enqueue_tasks([TASK])
        work(hopeless)
        assert fleet.queue.failed_ids() == {TASK.id}
        assert [event.detail for event in read_events(fleet.redis, TASK.id)] == ["", "never"]

    @pytest.mark.parametrize("kind", [ModelUnavailableError, RunMismatchError, WrongStoreError])
    def test_what_this_machine_can_not_is_handed_back(self, fleet: Fleet, work: Any, kind: Any) -> None:
        error = kind("not here")

        def elsewhere(task: Task, context: JobContext) -> dict[str, Any]:
            raise error

        fleet.queue.enqueue_tasks([TASK, image_task(1)])
        worker = work(elsewhere)
        assert worker.fatal is error
        assert fleet.queue.in_flight().queued == (TASK.id, image_task(1).id)
        assert fleet.queue.in_flight().started == frozenset()
        assert fleet.job(TASK).retries_left == MAX_RETRIES

    def test_no_except_exception_in_a_task_swallows_handing_back(self) -> None:
        assert not issubclass(HandBackError, Exception)
        context = JobContext(confirm=lambda: None, hand_back=True)
        with pytest.raises(HandBackError):
            context.check("step")

    def test_a_lost_lease_is_confirmed_before_it_is_believed(self) -> None:
        def gone() -> None:
            raise LeaseLostError("gone")

        with pytest.raises(LeaseLostError):
            JobContext(confirm=gone, lost=True).check("step")
        context = JobContext(confirm=lambda: None, lost=True)
        context.check("step")
        assert not context.lost
        assert context.progress == "step"

    def test_a_job_given_to_another_meanwhile_is_left_alone(self, fleet: Fleet, work: Any) -> None:
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

    def test_a_burst_that_is_over_leaves_in_order(self, fleet: Fleet, work: Any) -> None:
        assert work(lambda task, context: {}).left_in_order
        fleet.queue.enqueue_tasks([TASK])
        assert work(lambda task, context: {}).left_in_order

    def test_an_error_in_the_worker_itself_is_no_order(
        self, fleet: Fleet, work: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """RQ logs it and returns as if all were done."""

        def broken(*args: Any) -> None:
            raise TypeError("a bug")

        monkeypatch.setattr(LeaseWorker, "_note", broken)
        fleet.queue.enqueue_tasks([TASK])
        assert not work(lambda task, context: {}).left_in_order

    def test_an_error_in_maintenance_does_not_end_the_beat(
        self, fleet: Fleet, work: Any, monkeypatch: pytest.MonkeyPatch
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


class TestMaintenance:
    def test_many_cleaners_return_a_job_once(self, fleet: Fleet) -> None:
        for _ in range(20):
            fleet.redis.flushall()
            fleet.queue.enqueue_tasks([TASK])
            fleet.redis.delete(fleet.queue.key)
            fleet.redis.hset(f"rq:job:{TASK.id}", mapping={"status": JobStatus.STARTED})
            fleet.redis.zadd(f"rq:wip:{QUEUE}", {f"{TASK.id}:x": 1})
            with ThreadPoolExecutor(4) as pool:
                cleaners = [pool.submit(return_lost_jobs, fleet.redis, QUEUE, LEASE) for _ in range(8)]
            assert [cleaner.result() for cleaner in cleaners] == [None] * 8
            assert fleet.queue.in_flight().queued == (TASK.id,)
            assert fleet.job(TASK).retries_left == MAX_RETRIES - 1

    def test_a_live_lease_is_left_alone(self, fleet: Fleet) -> None:
        fleet.queue.enqueue_tasks([TASK])
        fleet.redis.delete(fleet.queue.key)
        fleet.redis.hset(f"rq:job:{TASK.id}", mapping={"status": JobStatus.STARTED})
        fleet.redis.zadd(f"rq:wip:{QUEUE}", {f"{TASK.id}:x": 2**33})
        return_lost_jobs(fleet.redis, QUEUE, LEASE)
        assert fleet.queue.in_flight().started == {TASK.id}
        assert fleet.queue.in_flight().queued == ()

    def test_another_cleaners_lock_is_respected(self, fleet: Fleet) -> None:
        fleet.queue.enqueue_tasks([TASK])
        fleet.redis.delete(fleet.queue.key)
        fleet.redis.hset(f"rq:job:{TASK.id}", mapping={"status": JobStatus.STARTED})
        fleet.redis.zadd(f"rq:wip:{QUEUE}", {f"{TASK.id}:x": 1})
        assert fleet.queue.acquire_maintenance_lock()
        return_lost_jobs(fleet.redis, QUEUE, LEASE)
        assert fleet.queue.in_flight().started == {TASK.id}

    def test_a_mark_of_an_earlier_pop_does_not_hurry_the_next(self, fleet: Fleet) -> None:
        """Seen popped once, then started; popped again later, it has its whole lease again."""
        fleet.queue.enqueue_tasks([TASK])
        queue, popped = fleet.queue.key, fleet.queue.intermediate_queue_key
        fleet.redis.lmove(queue, popped)
        return_lost_jobs(fleet.redis, QUEUE, LEASE)
        fleet.redis.lmove(popped, queue)
        return_lost_jobs(fleet.redis, QUEUE, LEASE)
        assert fleet.redis.keys("bitfleet:stuck:*") == []
        fleet.redis.lmove(queue, popped)
        return_lost_jobs(fleet.redis, QUEUE, LEASE)
        assert fleet.queue.in_flight().queued == ()

    def test_workers_that_are_gone_are_forgotten(self, fleet: Fleet) -> None:
        fleet.redis.sadd(f"rq:workers:{QUEUE}", "rq:worker:gone")
        fleet.redis.sadd("rq:workers", "rq:worker:gone")
        return_lost_jobs(fleet.redis, QUEUE, LEASE)
        assert fleet.redis.smembers("rq:workers") == set()
