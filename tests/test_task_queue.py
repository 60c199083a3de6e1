"""The queue: deterministic ids, results that last, and reading that changes nothing."""

import pytest
from redis import Redis
from rq.job import JobStatus
from rq.results import Result

from shared.errors import TaskRefusedError
from shared.jobs.task_job import (
    FAILURE_TTL,
    JOB_TIMEOUT,
    RESULT_TTL,
    TaskJob,
)
from shared.jobs.task_queue import TaskQueue, parse_queue_name, queue_name
from shared.kinds.kind import Task
from shared.runs import PROTOCOL
from tests.job_fleet import KEY, QUEUE, Fleet
from tests.tasks import image_task, layer_task

GOOD = image_task(7)


@pytest.fixture
def fleet(redis: Redis, redis_url: str) -> Fleet:
    return Fleet(redis, redis_url)


def test_ids_are_the_tasks_own(fleet: Fleet) -> None:
    tasks: list[Task] = [image_task(0), image_task(1), layer_task()]
    assert fleet.queue.enqueue_tasks(tasks) == 3
    assert fleet.queue.in_flight().queued == tuple(task.id for task in tasks)
    for task in tasks:
        job = TaskJob.fetch(task.id, connection=fleet.redis, serializer=fleet.queue.serializer)
        assert job.task == task
        assert job.description == task.label
        assert (job.result_ttl, job.failure_ttl) == (RESULT_TTL, FAILURE_TTL)
        assert job.timeout == JOB_TIMEOUT


def test_enqueueing_again_replaces_what_an_earlier_attempt_left(fleet: Fleet, redis: Redis) -> None:
    fleet.queue.enqueue_tasks([GOOD])
    fleet.work()
    assert fleet.queue.finished_job_registry.get_job_ids(cleanup=False) == [GOOD.id]
    fleet.queue.enqueue_tasks([GOOD])
    assert fleet.queue.finished_job_registry.get_job_ids(cleanup=False) == []
    assert redis.ttl(TaskJob.key_for(GOOD.id)) == -1, "a queued job must not vanish"
    fleet.work()
    assert fleet.ran == [GOOD.id] * 2


def test_reading_changes_nothing(fleet: Fleet, redis: Redis) -> None:
    """RQ's own counts return abandoned jobs, unlocked; ours must leave that to the workers."""
    fleet.queue.enqueue_tasks([GOOD])
    redis.lrem(KEY, 0, GOOD.id)
    redis.hset(f"rq:job:{GOOD.id}", mapping={"status": JobStatus.STARTED})
    redis.zadd(f"rq:wip:{QUEUE}", {f"{GOOD.id}:x": 1})
    redis.zadd(f"rq:failed:{QUEUE}", {"failed-long-ago": 1})
    before = {key: redis.dump(key) for key in redis.keys("*")}
    for _ in range(3):
        assert fleet.queue.in_flight().ids == {GOOD.id}
        assert fleet.queue.in_flight().started == {GOOD.id}
        assert fleet.queue.failed_ids() == {"failed-long-ago"}
    assert {key: redis.dump(key) for key in redis.keys("*")} == before


@pytest.mark.parametrize("timeout", [None, 1])
def test_waiting_for_a_job_leaves_it_where_it_is(fleet: Fleet, redis: Redis, timeout: int | None) -> None:
    fleet.queue.enqueue_tasks([GOOD, image_task(8)])
    redis.lpush(KEY, b"\xff")
    for _ in range(3):
        assert TaskQueue.lmove(redis, KEY, timeout) == (KEY, GOOD.id.encode())
        assert fleet.queue.in_flight().queued == (GOOD.id, image_task(8).id)


def test_the_result_is_kept_for_days(fleet: Fleet, redis: Redis) -> None:
    fleet.queue.enqueue_tasks([GOOD])
    fleet.work()
    job = TaskJob.fetch(GOOD.id, connection=redis, serializer=fleet.queue.serializer)
    assert job.get_status() == JobStatus.FINISHED
    assert job.return_value() == {"outcome": "stored"}
    assert 6 * 86400 < redis.ttl(Result.get_key(GOOD.id)) <= RESULT_TTL


def test_queue_names() -> None:
    assert parse_queue_name(queue_name("relay")) == (PROTOCOL, "relay")
    assert parse_queue_name(queue_name("a-b_c", protocol=12)) == (12, "a-b_c")
    for name in (
        "default",
        "bitfleet-x-relay",
        "bitfleet-1-",
        "bitfleet-1-a/b",
        "xbitfleet-1-a",
        "bitfleet-1-a\n",
    ):
        assert parse_queue_name(name) is None


def test_no_function_is_ever_imported_by_name(redis: Redis) -> None:
    job = TaskJob.create("os.getpid", connection=redis, serializer=TaskQueue(QUEUE, redis).serializer)
    with pytest.raises(TaskRefusedError):
        _ = job.func
    with pytest.raises(TaskRefusedError):
        job.perform()
