"""Second copies: of which job, and what becomes of them."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from redis import Redis
from rq.exceptions import StopRequested
from rq.job import JobStatus
from rq.utils import utcformat

from shared.jobs.tally import Tally, encode_tally
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.jobs.workers import HOST_FIELD, START_FIELD, TALLY_FIELD
from shared.kinds.kind import Task
from tests.tasks import image_task, layer_task
from worker.jobs.copy_claim import CLAIM_SECONDS, claim_copy, drop_claim
from worker.jobs.hedge import Hedge
from worker.jobs.job_context import JobContext
from worker.jobs.pace import LOOK_BACK, NEAREST

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
            min_seconds=0.5,
            each_look=lambda: None,
            clock=lambda: self.now,
        )

    def _run(self, task: Task, context: JobContext) -> dict[str, Any]:
        self.copies.append(task.id)
        self.act(context)
        return {"outcome": self.outcome}

    def join(self, worker: str, *, host: str = "there", speed: float = 0.0) -> None:
        key = f"rq:worker:{worker}"
        self.redis.sadd(f"rq:workers:{QUEUE}", key)
        tally = encode_tally(Tally().with_speed(speed))
        fields = {"last_heartbeat": "x", HOST_FIELD: host, START_FIELD: worker, TALLY_FIELD: tally}
        self.redis.hset(key, mapping=fields)

    def finish(self, *tasks: Task, seconds: float = 1.0, worker: str = "other") -> None:
        for task in tasks:
            self._ends += 1
            self._move(task, JobStatus.FINISHED, seconds)
            self.redis.hset(TaskJob.key_for(task.id), "worker_name", worker)
            self.redis.hset(TaskJob.key_for(task.id), "ended_at", self._ago(0))
            self.redis.zadd(self.queue.finished_job_registry.key, {task.id: self._ends})

    def start(self, task: Task, *, seconds: float, worker: str = "slow") -> None:
        self._move(task, JobStatus.STARTED, seconds)
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
        """Whose claim does not stay: the next look finds it again."""
        slow = self.hedge.find_slow_job()
        if slow:
            drop_claim(self.queue, slow.job)
        return slow.job.id if slow else None

    def another(self, worker: str) -> Hedge:
        """That of another idle worker, which joins with a host of its own."""
        self.join(worker, host=worker, speed=1.0)
        return Hedge(
            self.queue,
            {"calibration": self._run},
            host=worker,
            worker=worker,
            min_seconds=0.5,
            each_look=lambda: None,
            clock=lambda: self.now,
        )


@pytest.fixture
def fleet(redis: Redis) -> Fleet:
    fleet = Fleet(redis)
    fleet.finish(*(image_task(index) for index in range(3)))
    return fleet


class TestWhichJob:
    def test_one_that_is_overdue_by_more_than_a_copy_takes(self, fleet: Fleet) -> None:
        fleet.finish(image_task(3), seconds=100)
        fleet.start(SLOW, seconds=0)
        fleet.now += 2.4
        assert fleet.slow_job() is None
        fleet.now += 0.2
        assert fleet.slow_job() == SLOW.id

    def test_one_of_a_much_slower_machine_at_once(self, fleet: Fleet) -> None:
        for worker, speed in (("idle", 10.0), ("other", 5.0), ("slow", 1.0)):
            fleet.join(worker, host=worker, speed=speed)
        # Ends in 5 s there, and in 0.5 s here.
        fleet.start(SLOW, seconds=0)
        assert fleet.slow_job() == SLOW.id
        # Now it ends there just as soon.
        fleet.now += 4.4
        assert fleet.slow_job() is None
        fleet.now += 2
        assert fleet.slow_job() == SLOW.id

    def test_not_one_that_a_faster_machine_will_have_done_sooner(self, fleet: Fleet) -> None:
        for worker, speed in (("idle", 1.0), ("other", 5.0), ("slow", 10.0)):
            fleet.join(worker, host=worker, speed=speed)
        # Half a second there, 5 s here: it is overdue by less than that.
        fleet.start(SLOW, seconds=4)
        assert fleet.slow_job() is None
        fleet.now += 4
        assert fleet.slow_job() == SLOW.id

    def test_the_one_that_ends_last_whatever_gains_most(self, fleet: Fleet) -> None:
        for worker, speed in (("idle", 2.0), ("other", 1.0), ("slow", 0.1), ("slower", 0.05)):
            fleet.join(worker, host=worker, speed=speed)
        fleet.start(SLOW, seconds=8, worker="slower")
        fleet.start(image_task(8), seconds=0, worker="slow")
        assert fleet.slow_job() == SLOW.id

    def test_by_those_that_were_taken_about_the_same_time(self, fleet: Fleet) -> None:
        """Early layers take long, and late ones are quick: a slow machine has an early one still."""
        fleet.finish(*(layer_task(f"layer.{number}") for number in range(NEAREST)), seconds=60)
        fleet.now += 60
        fleet.finish(*(layer_task(f"late.{number}") for number in range(100)))
        fleet.start(layer_task(), seconds=100)
        assert fleet.slow_job() is None

    def test_not_while_others_wait(self, fleet: Fleet) -> None:
        fleet.start(SLOW, seconds=100)
        fleet.queue.enqueue_tasks([image_task(10)])
        assert fleet.slow_job() is None

    def test_nor_is_the_queue_read_while_others_wait(
        self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fleet.queue.enqueue_tasks([image_task(10)])
        monkeypatch.setattr(TaskQueue, "in_flight", lambda _: pytest.fail("it was read"))
        assert fleet.slow_job() is None

    def test_not_its_own(self, fleet: Fleet) -> None:
        fleet.start(SLOW, seconds=100, worker="idle")
        assert fleet.slow_job() is None

    def test_not_its_own_machines(self, fleet: Fleet) -> None:
        fleet.join("neighbour", host="here")
        fleet.start(SLOW, seconds=100, worker="neighbour")
        assert fleet.slow_job() is None

    def test_an_image_though_many_layers_have_ended_since(self, fleet: Fleet) -> None:
        fleet.finish(*(layer_task(f"layer.{number}") for number in range(LOOK_BACK - 3)))
        fleet.start(SLOW, seconds=100)
        assert fleet.slow_job() == SLOW.id
        fleet.finish(layer_task())
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

    def test_whatever_stands_in_the_hashes_of_finished_jobs(self, fleet: Fleet) -> None:
        for index, start in enumerate(
            (b"garbage", b"2026-01-01T00:00:00", b"9999-12-31T23:59:59-23:00", b"\xff")
        ):
            task = image_task(20 + index)
            fleet.finish(task)
            fleet.redis.hset(TaskJob.key_for(task.id), "started_at", start)
        fleet.start(SLOW, seconds=100)
        fleet.redis.hset(TaskJob.key_for(SLOW.id), "bitfleet_copy", b"\xff nan")
        assert fleet.slow_job() == SLOW.id


class TestClaim:
    def test_two_idle_machines_take_different_jobs(self, fleet: Fleet) -> None:
        fleet.start(SLOW, seconds=100)
        fleet.start(image_task(8), seconds=99)
        first, second, third = (fleet.another(name) for name in ("one", "two", "three"))
        found = [hedge.find_slow_job() for hedge in (first, second, third)]
        assert [slow and slow.job.id for slow in found] == [SLOW.id, image_task(8).id, None]

    def test_counts_as_the_end_of_its_job(self, fleet: Fleet) -> None:
        """A faster machine could end the first job sooner still, but the other one ends last."""
        fleet.start(SLOW, seconds=100)
        fleet.start(image_task(8), seconds=50)
        job = TaskJob.fetch(SLOW.id, fleet.redis, serializer=fleet.queue.serializer)
        assert claim_copy(fleet.queue, job, "one", now=fleet.now, done=fleet.now + 10)
        assert fleet.slow_job() == image_task(8).id

    def test_ends_by_itself(self, fleet: Fleet) -> None:
        fleet.start(SLOW, seconds=100)
        assert fleet.another("one").find_slow_job()
        fleet.now += CLAIM_SECONDS - 1
        assert fleet.slow_job() is None
        fleet.now += 2
        assert fleet.slow_job() == SLOW.id

    def test_ends_with_the_copy(self, fleet: Fleet) -> None:
        fleet.start(SLOW, seconds=100)
        fleet.outcome = "exists"
        fleet.another("one").take_copy()
        assert fleet.slow_job() == SLOW.id

    def test_yields_to_a_faster_machine(self, fleet: Fleet) -> None:
        def go_on(context: JobContext) -> None:
            context.confirm()
            found.append(fast.find_slow_job())
            context.confirm()
            ended.append(True)

        found: list[Any] = []
        ended: list[bool] = []
        fleet.start(SLOW, seconds=100)
        fast, slow = fleet.another("fast"), fleet.another("one")
        fleet.join("fast", host="fast", speed=20.0)
        fleet.join("other", host="other", speed=1.0)
        fleet.finish(*(image_task(index) for index in range(3)), seconds=20)
        fleet.act = go_on
        slow.take_copy()
        assert found[0].job.id == SLOW.id
        assert ended == []

    def test_leaves_no_hash_of_a_job_that_is_gone(self, fleet: Fleet) -> None:
        fleet.start(SLOW, seconds=100)
        slow = fleet.hedge.find_slow_job()
        assert slow
        fleet.redis.delete(slow.job.key)
        assert not claim_copy(fleet.queue, slow.job, "one", now=fleet.now, done=fleet.now)
        assert not fleet.redis.exists(slow.job.key)


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
