"""Looking after lost jobs: returned once, by one, and only when their time is over."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rq.job import JobStatus

from shared.jobs.task_job import MAX_RETRIES
from tests.lease_fleet import LEASE, QUEUE, Fleet
from tests.tasks import image_task
from worker.jobs.maintenance import return_lost_jobs

TASK = image_task(0)


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(redis_url, tmp_path)
    yield fleet
    fleet.close()


def test_many_cleaners_return_a_job_once(fleet: Fleet) -> None:
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


def test_a_live_lease_is_left_alone(fleet: Fleet) -> None:
    fleet.queue.enqueue_tasks([TASK])
    fleet.redis.delete(fleet.queue.key)
    fleet.redis.hset(f"rq:job:{TASK.id}", mapping={"status": JobStatus.STARTED})
    fleet.redis.zadd(f"rq:wip:{QUEUE}", {f"{TASK.id}:x": 2**33})
    return_lost_jobs(fleet.redis, QUEUE, LEASE)
    assert fleet.queue.in_flight().started == {TASK.id}
    assert fleet.queue.in_flight().queued == ()


def test_another_cleaners_lock_is_respected(fleet: Fleet) -> None:
    fleet.queue.enqueue_tasks([TASK])
    fleet.redis.delete(fleet.queue.key)
    fleet.redis.hset(f"rq:job:{TASK.id}", mapping={"status": JobStatus.STARTED})
    fleet.redis.zadd(f"rq:wip:{QUEUE}", {f"{TASK.id}:x": 1})
    assert fleet.queue.acquire_maintenance_lock()
    return_lost_jobs(fleet.redis, QUEUE, LEASE)
    assert fleet.queue.in_flight().started == {TASK.id}


def test_a_mark_of_an_earlier_pop_does_not_hurry_the_next(fleet: Fleet) -> None:
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


def test_workers_that_are_gone_are_forgotten(fleet: Fleet) -> None:
    fleet.redis.sadd(f"rq:workers:{QUEUE}", "rq:worker:gone")
    fleet.redis.sadd("rq:workers", "rq:worker:gone")
    return_lost_jobs(fleet.redis, QUEUE, LEASE)
    assert fleet.redis.smembers("rq:workers") == set()
