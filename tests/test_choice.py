"""Which job a worker takes: after its wait, and elsewhere than where it failed."""

import itertools
import time
from collections import Counter
from typing import Any

import msgspec
import pytest
from redis import Redis
from rq.exceptions import DequeueTimeout

from shared.jobs.asides import kind_of_job
from shared.jobs.connection import connect
from shared.jobs.task_queue import TaskQueue, avoid_key, queue_name, runs_key
from shared.jobs.workers import Place
from tests.tasks import SETTINGS, image_task
from worker.jobs import choice
from worker.jobs.choice import Chooser, choosing_queue

QUEUE = queue_name("relay")
AIR = Place("air", "a-start")
IDS = [image_task(index).id for index in range(4)]


class Waiting:
    """Jobs that wait, and workers of two hosts that look for one."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.queue = TaskQueue(QUEUE, redis)
        self.queue.enqueue_tasks([image_task(index) for index in range(2)])

    def delay(self, job_id: str, seconds: float) -> None:
        self.redis.zadd(self.queue.delayed_key, {job_id: time.time() + seconds})

    def found(self, host: str = "air", timeout: int | None = None, aside: tuple[str, ...] = ()) -> Any:
        kind = choosing_queue(Place(host, "a-start"), lambda: list(aside))
        answer = kind.lmove(self.redis, self.queue.key, timeout)
        return answer and answer[1].decode()


@pytest.fixture
def waiting(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Waiting:
    monkeypatch.setattr(choice, "POLL_SECONDS", 0.05)
    return Waiting(redis)


def test_a_delayed_job_comes_to_the_front_when_its_wait_is_over(waiting: Waiting) -> None:
    waiting.delay(IDS[2], 60)
    assert waiting.found() == IDS[0]
    assert waiting.queue.in_flight().delayed == (IDS[2],)
    waiting.delay(IDS[2], -1)
    waiting.delay(IDS[3], -2)
    assert waiting.found() == IDS[3]
    assert waiting.queue.in_flight().ready == (IDS[3], IDS[2], IDS[0], IDS[1])
    assert waiting.queue.in_flight().delayed == ()


def test_a_delayed_job_is_queued_and_can_be_withdrawn(waiting: Waiting) -> None:
    waiting.delay(IDS[2], 60)
    assert waiting.queue.in_flight().queued == (*IDS[:2], IDS[2])
    waiting.queue.withdraw(IDS[2:3])
    assert waiting.queue.in_flight().queued == tuple(IDS[:2])


def test_a_job_is_left_to_another_host_for_a_while(waiting: Waiting) -> None:
    waiting.redis.set(avoid_key(IDS[0]), "air\nmini", ex=60)
    assert waiting.found("air") == IDS[1]
    assert waiting.found("mini") == IDS[1]
    assert waiting.found("studio") == IDS[0]
    # Another host's name in which its own one stands.
    assert waiting.found("ai") == IDS[0]
    waiting.redis.set(avoid_key(IDS[0]), "a-start", ex=60)
    assert waiting.found("studio") == IDS[1]
    waiting.redis.delete(avoid_key(IDS[0]))
    assert waiting.found("air") == IDS[0]


def test_a_burst_waits_for_what_comes_later_and_not_for_what_it_can_not_do(waiting: Waiting) -> None:
    waiting.queue.withdraw(IDS)
    assert waiting.found() is None
    waiting.delay(IDS[2], 60)
    with pytest.raises(DequeueTimeout):
        waiting.found()
    assert waiting.found(aside=(kind_of_job(IDS[0]),)) is None
    waiting.delay(IDS[2], -1)
    assert waiting.found() == IDS[2]
    waiting.redis.set(avoid_key(IDS[2]), "air", ex=60)
    with pytest.raises(DequeueTimeout):
        waiting.found()


def test_an_idle_worker_wakes_when_a_wait_is_over(waiting: Waiting) -> None:
    waiting.queue.withdraw(IDS)
    waiting.delay(IDS[2], 0.1)
    with pytest.raises(DequeueTimeout):
        waiting.found(timeout=10)
    assert waiting.found(timeout=10) == IDS[2]


@pytest.mark.parametrize("value", [b"text", b"\xff"])
def test_a_key_of_another_type_is_no_trouble(waiting: Waiting, redis_url: str, value: bytes) -> None:
    waiting.redis = connect(redis_url)
    waiting.redis.set(waiting.queue.delayed_key, value)
    waiting.redis.rpush(avoid_key(IDS[0]), value)
    assert waiting.found() == IDS[0]
    assert waiting.queue.in_flight().delayed == ()


class TestTurns:
    """Several runs in one queue."""

    OTHER = msgspec.structs.replace(SETTINGS, seed=1)

    def enqueue(self, redis: Redis, counts: tuple[int, int]) -> TaskQueue:
        queue = TaskQueue(QUEUE, redis)
        for run, count in zip((SETTINGS, self.OTHER), counts, strict=True):
            redis.rpush(queue.key, *[f"cal-{run.id}-{index:05d}" for index in range(count)])
            redis.sadd(runs_key(QUEUE), f"cal-{run.id}-")
        return queue

    def lease(self, queue: TaskQueue, job_id: str) -> None:
        queue.connection.zadd(queue.started_job_registry.key, {f"{job_id}:x": 2**33})
        queue.connection.lrem(queue.key, 1, job_id)

    def choose(self, redis: Redis, chooser: Chooser) -> str:
        found = chooser.choose(redis, QUEUE).job_id
        assert found
        return found.decode()

    def test_a_second_run_has_half_of_the_workers_whatever_waits_before_it(self, redis: Redis) -> None:
        queue = self.enqueue(redis, (2500, 10))
        workers = [Chooser(AIR, list) for _ in range(6)]
        for worker in workers:
            self.lease(queue, self.choose(redis, worker))
        runs = Counter(kind_of_job(job_id) for job_id in queue.in_flight().started)
        assert sorted(runs.values()) == [3, 3]
        # Each run is still in its own order.
        waiting = queue.in_flight().ready
        for run in (SETTINGS, self.OTHER):
            ours = [job_id for job_id in waiting if run.id in job_id]
            assert ours == sorted(ours)
        assert len(waiting) == 2504

    def test_a_lone_worker_stays_with_a_run_for_a_turn(
        self, redis: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [1000.0]
        monkeypatch.setattr("time.monotonic", lambda: now[0])
        queue = self.enqueue(redis, (1200, 1200))
        worker = Chooser(AIR, list)
        taken = []
        for _ in range(40):
            job_id = self.choose(redis, worker)
            redis.lrem(queue.key, 1, job_id)
            taken.append(kind_of_job(job_id))
            now[0] += choice.TURN_SECONDS / 10
        assert [len(list(turn)) for _, turn in itertools.groupby(taken)] == [10, 10, 10, 10]

    def test_a_run_that_is_over_or_set_aside_holds_up_no_other(self, redis: Redis) -> None:
        queue = self.enqueue(redis, (1500, 2))
        first, second = image_task(0).id, image_task(0, run=self.OTHER).id
        assert self.choose(redis, Chooser(AIR, lambda: [kind_of_job(first)])) == second
        assert self.choose(redis, Chooser(AIR, lambda: [kind_of_job(second)])) == first
        queue.withdraw([second, image_task(1, run=self.OTHER).id])
        assert self.choose(redis, Chooser(AIR, list)) == first
        # It is not looked for again.
        assert redis.smembers(runs_key(QUEUE)) == {kind_of_job(first).encode()}
