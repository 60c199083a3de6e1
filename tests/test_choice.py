"""Which job a worker takes: after its wait, and elsewhere than where it failed."""

import time
from typing import Any

import pytest
from redis import Redis
from rq.exceptions import DequeueTimeout

from shared.jobs.task_queue import TaskQueue, avoid_key, queue_name
from tests.tasks import image_task
from worker.jobs import choice
from worker.jobs.choice import choosing_queue

QUEUE = queue_name("relay")
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
        kind = choosing_queue(host, lambda: list(aside))
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
    waiting.redis.delete(avoid_key(IDS[0]))
    assert waiting.found("air") == IDS[0]


def test_a_burst_waits_for_what_comes_later_and_not_for_what_it_can_not_do(waiting: Waiting) -> None:
    waiting.queue.withdraw(IDS)
    assert waiting.found() is None
    waiting.delay(IDS[2], 60)
    with pytest.raises(DequeueTimeout):
        waiting.found()
    assert waiting.found(aside=("cal-",)) is None
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
def test_a_key_of_another_type_is_no_trouble(waiting: Waiting, value: bytes) -> None:
    waiting.redis.set(waiting.queue.delayed_key, value)
    waiting.redis.rpush(avoid_key(IDS[0]), value)
    assert waiting.found() == IDS[0]
    assert waiting.queue.in_flight().delayed == ()
