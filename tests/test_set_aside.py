"""What a machine sets aside: which job is taken instead, for how long, and who knows of it."""

import time
from typing import Any

import msgspec
import pytest
from redis import Redis
from rq.exceptions import DequeueTimeout

from shared.jobs.asides import ASIDE_SECONDS, Aside, kind_of_job
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.jobs.workers import Place
from tests.tasks import SETTINGS, image_task, layer_task
from worker.jobs import choice
from worker.jobs.choice import choosing_queue
from worker.jobs.set_aside import SetAside

QUEUE = queue_name("relay")
KEY = f"bitfleet:aside:{QUEUE}"
OTHER = image_task(0, run=msgspec.structs.replace(SETTINGS, seed=1))


@pytest.fixture
def aside(redis: Redis) -> SetAside:
    return SetAside(redis, QUEUE, host="air", start_id="one")


def first(aside: SetAside, redis: Redis, timeout: int | None = None) -> Any:
    queue = choosing_queue(Place("air", "one"), aside.prefixes)(QUEUE, redis)
    found = queue.lmove(redis, queue.key, timeout)
    return found and found[1].decode()


def test_the_first_job_that_is_not_set_aside_is_found(redis: Redis, aside: SetAside) -> None:
    queue = TaskQueue(QUEUE, redis)
    # More than are looked at in one go.
    images = [image_task(index).id for index in range(2500)]
    redis.rpush(queue.key, *images)
    queue.enqueue_tasks([OTHER, layer_task()])
    waiting = queue.in_flight().queued
    assert first(aside, redis) == images[0]
    aside.add(images[0], "too small")
    assert first(aside, redis) == OTHER.id
    aside.add(OTHER.id, "too small for these, too")
    assert first(aside, redis) == layer_task().id
    aside.add(layer_task().id, "nor these")
    assert first(aside, redis) is None
    # They are dealt in turns, and all are there: a worker takes one in the step that starts it.
    assert sorted(queue.in_flight().queued) == sorted(waiting)


def test_while_all_is_set_aside_it_looks_once_a_while(
    redis: Redis, aside: SetAside, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    TaskQueue(QUEUE, redis).enqueue_tasks([image_task(0)])
    aside.add(image_task(0).id, "too small")
    with pytest.raises(DequeueTimeout):
        first(aside, redis, timeout=10)
    assert slept == [choice.POLL_SECONDS]


def test_an_entry_that_is_no_job_is_passed_over(redis: Redis, aside: SetAside) -> None:
    aside.add(image_task(0).id, "too small")
    queue = TaskQueue(QUEUE, redis)
    redis.rpush(queue.key, b"\xff\x00 no job")
    queue.enqueue_tasks([OTHER])
    assert first(aside, redis) == OTHER.id
    assert queue.in_flight().queued == (OTHER.id,)


def test_it_is_tried_again_after_a_while(
    redis: Redis, aside: SetAside, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside.add(image_task(0).id, "too small")
    assert aside.prefixes() == [kind_of_job(image_task(5).id)]
    assert aside.reasons() == ["too small"]
    later = time.monotonic() + ASIDE_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert aside.prefixes() == []
    assert aside.reasons() == []


def test_a_process_that_replaces_another_knows_it_and_another_start_does_not(
    redis: Redis, aside: SetAside
) -> None:
    aside.add(image_task(0).id, "too small")
    assert SetAside(redis, QUEUE, host="air", start_id="one").reasons() == ["too small"]
    assert SetAside(redis, QUEUE, host="air", start_id="two").reasons() == []
    assert 0 < redis.ttl(KEY) <= 10 * ASIDE_SECONDS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"one:cal-0-", b"\xff"),
        (b"one:cal-0-", b"{}"),
        (b"one:cal-0-", msgspec.json.encode(Aside(host="x", reason="forever", until=9e15))),
        # Would set aside everything.
        (b"one:", msgspec.json.encode(Aside(host="x", reason="", until=time.time() + 60))),
        (b"\xff", b""),
    ],
    ids=["no text", "no fields", "for too long", "everything", "no name"],
)
def test_garbage_sets_nothing_aside(redis: Redis, name: bytes, value: bytes) -> None:
    redis.hset(KEY, name, value)
    assert SetAside(redis, QUEUE, host="air", start_id="one").prefixes() == []


def test_a_reason_is_told_without_what_a_terminal_would_obey(redis: Redis) -> None:
    forged = Aside(host="x", reason="\x1b[2Jgone\n", until=time.time() + 60)
    redis.hset(KEY, "one:cal-0-", msgspec.json.encode(forged))
    assert SetAside(redis, QUEUE, host="air", start_id="one").reasons() == [r"\u001b[2Jgone "]


def test_a_key_of_another_kind_is_no_trouble(redis: Redis, aside: SetAside) -> None:
    redis.set(KEY, "text")
    aside.add(image_task(0).id, "too small")
    assert aside.reasons() == ["too small"]
    assert SetAside(redis, QUEUE, host="air", start_id="one").reasons() == []
