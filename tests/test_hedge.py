"""Second copies: of which job, and what becomes of them."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from redis import Redis
from rq.exceptions import StopRequested
from rq.job import JobStatus
from rq.utils import utcformat

from shared.jobs.history import Event, add_event
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.kinds.kind import Task
from tests.tasks import image_task, layer_task
from worker.jobs.hedge import LAST, LOOK_BACK, Hedge
from worker.jobs.job_context import JobContext

QUEUE = queue_name("relay")
SLOW = image_task(9)


class Fleet:
    """Jobs of others, some done in a second each and one that runs; and an idle worker that hedges."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.now = 1_800_000_000.0
        self.queue = TaskQueue(QUEUE, redis)
        self.copies: list[str] = []
        self.act: Callable[[JobContext], None] = lambda context: None
        self.outcome = "stored"
        self._ends = 2**33
        self.hedge = Hedge(
            self.queue,
            {"calibration": self._run},
            host="here",
            worker="idle",
            min_seconds=1.0,
            each_look=lambda: None,
            clock=lambda: self.now,
        )

    def _run(self, task: Task, context: JobContext) -> dict[str, Any]:
        self.copies.append(task.id)
        self.act(context)
        return {"outcome": self.outcome}

    def finish(self, *tasks: Task, seconds: float = 1.0) -> None:
        for task in tasks:
            self._ends += 1
            self._move(task, JobStatus.FINISHED, seconds)
            self.redis.hset(TaskJob.key_for(task.id), "ended_at", self._ago(0))
            self.redis.zadd(self.queue.finished_job_registry.key, {task.id: self._ends})

    def start(self, task: Task, *, seconds: float, worker: str = "slow", host: str = "there") -> None:
        self._move(task, JobStatus.STARTED, seconds)
        add_event(self.redis, task.id, Event(outcome="started", host=host, worker=worker))
        self.redis.hset(TaskJob.key_for(task.id), "worker_name", worker)
        self.redis.zadd(self.queue.started_job_registry.key, {f"{task.id}:x": 2**33})

    def _move(self, task: Task, status: JobStatus, seconds: float) -> None:
        self.queue.enqueue_tasks([task])
        self.redis.lrem(self.queue.key, 0, task.id)
        fields = {"status": status, "started_at": self._ago(seconds)}
        self.redis.hset(TaskJob.key_for(task.id), mapping=fields)

    def _ago(self, seconds: float) -> str:
        return utcformat(datetime.fromtimestamp(self.now - seconds, UTC))

    def slow_job(self) -> str | None:
        job = self.hedge.find_slow_job()
        return job.id if job else None


@pytest.fixture
def fleet(redis: Redis) -> Fleet:
    fleet = Fleet(redis)
    fleet.finish(*(image_task(index) for index in range(3)))
    return fleet


class TestWhichJob:
    def test_one_that_runs_for_more_than_twice_the_median(self, fleet: Fleet) -> None:
        fleet.finish(image_task(3), seconds=100)
        fleet.start(SLOW, seconds=0)
        fleet.now += 1.9
        assert fleet.slow_job() is None
        fleet.now += 0.2
        assert fleet.slow_job() == SLOW.id

    def test_not_while_others_wait(self, fleet: Fleet) -> None:
        fleet.start(SLOW, seconds=100)
        fleet.queue.enqueue_tasks([image_task(10)])
        assert fleet.slow_job() is None

    def test_not_its_own(self, fleet: Fleet) -> None:
        fleet.start(SLOW, seconds=100, worker="idle")
        assert fleet.slow_job() is None

    def test_not_its_own_machines(self, fleet: Fleet) -> None:
        fleet.start(SLOW, seconds=100, worker="neighbour", host="here")
        assert fleet.slow_job() is None

    def test_though_this_machine_had_it_before(self, fleet: Fleet) -> None:
        add_event(fleet.redis, SLOW.id, Event(outcome="failed", host="here", worker="neighbour"))
        fleet.start(SLOW, seconds=100)
        assert fleet.slow_job() == SLOW.id

    def test_the_one_that_runs_for_most_medians(self, fleet: Fleet) -> None:
        fleet.finish(*(layer_task(bits=bits) for bits in (2, 3, 5)), seconds=50)
        fleet.start(layer_task(), seconds=110)
        fleet.start(image_task(8), seconds=20)
        fleet.start(SLOW, seconds=30)
        for _ in range(20):
            assert fleet.slow_job() == SLOW.id

    def test_an_image_though_many_layers_have_ended_since(self, fleet: Fleet) -> None:
        fleet.finish(*(layer_task(f"layer.{number}") for number in range(LOOK_BACK - 3)))
        fleet.start(SLOW, seconds=100)
        assert fleet.slow_job() == SLOW.id
        fleet.finish(layer_task())
        assert fleet.slow_job() is None

    def test_by_the_last_of_its_like_alone(self, fleet: Fleet) -> None:
        fleet.finish(*(image_task(index) for index in range(10, 10 + LAST)), seconds=60)
        fleet.start(SLOW, seconds=100)
        assert fleet.slow_job() is None

    def test_by_what_it_knows_already(self, fleet: Fleet) -> None:
        fleet.start(SLOW, seconds=100)
        assert fleet.slow_job() == SLOW.id
        fleet.redis.delete(*(TaskJob.key_for(image_task(index).id) for index in range(3)))
        assert fleet.slow_job() == SLOW.id

    def test_not_one_whose_like_was_not_finished_often_enough(self, fleet: Fleet) -> None:
        other = layer_task()
        fleet.start(other, seconds=100)
        assert fleet.slow_job() is None
        fleet.finish(*(layer_task(bits=bits) for bits in (2, 3, 5)))
        assert fleet.slow_job() == other.id

    def test_not_a_short_one(self, redis: Redis) -> None:
        fleet = Fleet(redis)
        fleet.finish(*(image_task(index) for index in range(3)), seconds=0.01)
        fleet.start(SLOW, seconds=0.5)
        assert fleet.slow_job() is None

    def test_not_a_strangers(self, fleet: Fleet) -> None:
        fleet.start(SLOW, seconds=100)
        fleet.redis.hset(TaskJob.key_for(SLOW.id), "data", b"garbage")
        fleet.redis.zadd(fleet.queue.finished_job_registry.key, {b"\xff": 2**33, "gone": 2**33})
        assert fleet.slow_job() is None


class TestCopy:
    def test_ends_the_slow_ones_lease(self, fleet: Fleet) -> None:
        fleet.start(SLOW, seconds=100)
        fleet.hedge.take_copy()
        assert fleet.copies == [SLOW.id]
        assert fleet.queue.in_flight().ids == frozenset()

    def test_that_comes_second_changes_nothing(self, fleet: Fleet) -> None:
        fleet.start(SLOW, seconds=100)
        fleet.outcome = "exists"
        before = fleet.redis.hgetall(TaskJob.key_for(SLOW.id))
        fleet.hedge.take_copy()
        assert fleet.queue.in_flight().started == {SLOW.id}
        assert fleet.redis.hgetall(TaskJob.key_for(SLOW.id)) == before

    def test_looks_once_a_second_whether_it_is_needed(
        self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [1000.0]
        monkeypatch.setattr("time.monotonic", lambda: now[0])

        def go_on(context: JobContext) -> None:
            context.check("step 1")
            fleet.redis.delete(fleet.queue.started_job_registry.key)
            now[0] += 0.9
            context.check("step 2")
            now[0] += 0.2
            steps.append(2)
            context.check("step 3")
            steps.append(3)

        steps: list[int] = []
        fleet.act = go_on
        fleet.start(SLOW, seconds=100)
        fleet.hedge.take_copy()
        assert steps == [2]

    @pytest.mark.parametrize("event", ["done elsewhere", "other work"])
    def test_is_dropped_when_it_is_not_needed(self, fleet: Fleet, event: str) -> None:
        def go_on(context: JobContext) -> None:
            context.check("step 1")
            if event == "other work":
                fleet.queue.enqueue_tasks([image_task(10)])
            else:
                fleet.redis.delete(fleet.queue.started_job_registry.key)
            context.confirm()
            ended.append(True)

        ended: list[bool] = []
        fleet.act = go_on
        fleet.start(SLOW, seconds=100)
        fleet.hedge.take_copy()
        assert fleet.copies == [SLOW.id]
        assert ended == []

    def test_goes_on_when_the_slow_worker_died(self, fleet: Fleet) -> None:
        def go_on(context: JobContext) -> None:
            fleet.redis.delete(fleet.queue.started_job_registry.key)
            fleet.redis.rpush(fleet.queue.key, SLOW.id)
            context.confirm()
            ended.append(True)

        ended: list[bool] = []
        fleet.act = go_on
        fleet.start(SLOW, seconds=100)
        fleet.hedge.take_copy()
        assert ended == [True]

    def test_that_fails_is_the_last(self, fleet: Fleet) -> None:
        def fail(context: JobContext) -> None:
            raise ValueError("no")

        fleet.act = fail
        fleet.start(SLOW, seconds=100)
        for _ in range(2):
            fleet.hedge.take_copy()
        assert fleet.copies == [SLOW.id]
        assert fleet.queue.failed_ids() == set()
        assert fleet.queue.in_flight().started == {SLOW.id}

    @pytest.mark.parametrize("error", [StopRequested(), RuntimeError("[METAL] Command buffer failed")])
    def test_that_ends_the_worker(self, fleet: Fleet, error: Exception) -> None:
        def leave(context: JobContext) -> None:
            raise error

        fleet.act = leave
        fleet.start(SLOW, seconds=100)
        with pytest.raises(type(error)):
            fleet.hedge.take_copy()
