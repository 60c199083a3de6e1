"""Looking after lost jobs: returned once, and only when their lease is over and no outage has just ended."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.jobs.history import read_events
from shared.jobs.task_job import MAX_RETRIES
from tests.lease_fleet import LEASE, QUEUE, Fleet
from tests.tasks import image_task
from worker.jobs.maintenance import in_grace_period, return_job, return_lost_jobs

TASK = image_task(0)
NOW = 1_800_000_000.5


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(redis_url, tmp_path)
    yield fleet
    fleet.close()


def test_many_at_once_return_a_job_once(fleet: Fleet) -> None:
    for _ in range(20):
        fleet.redis.flushall()
        fleet.start_by_hand(TASK, "x", until=NOW - 1)
        with ThreadPoolExecutor(4) as pool:
            cleaners = [pool.submit(return_lost_jobs, fleet.redis, QUEUE, NOW) for _ in range(8)]
        assert [cleaner.result() for cleaner in cleaners] == [None] * 8
        assert fleet.queue.in_flight().queued == (TASK.id,)
        assert fleet.job(TASK).retries_left == MAX_RETRIES - 1
        assert fleet.outcomes(TASK) == ["crashed"]


def test_a_lease_is_left_alone_until_it_is_over(fleet: Fleet) -> None:
    fleet.start_by_hand(TASK, "x", until=NOW + LEASE)
    return_lost_jobs(fleet.redis, QUEUE, NOW + LEASE - 0.25)
    assert fleet.queue.in_flight().started == {TASK.id}
    assert fleet.queue.in_flight().queued == ()
    return_lost_jobs(fleet.redis, QUEUE, NOW + LEASE)
    assert fleet.queue.in_flight().queued == (TASK.id,)


def test_a_lease_that_is_renewed_just_then_is_left_alone(fleet: Fleet) -> None:
    """It had ended when the list was read."""
    fleet.start_by_hand(TASK, "x", until=NOW + LEASE)
    lease = f"{TASK.id}:x".encode()
    assert not return_job(fleet.queue, lease, cause="silence", ended_by=NOW)
    assert fleet.queue.in_flight().started == {TASK.id}
    assert fleet.queue.in_flight().queued == ()
    assert fleet.outcomes(TASK) == []


def test_a_job_without_attempts_left_failed(fleet: Fleet) -> None:
    fleet.start_by_hand(TASK, "x", until=NOW)
    fleet.redis.hset(f"rq:job:{TASK.id}", "retries_left", 0)
    return_lost_jobs(fleet.redis, QUEUE, NOW)
    assert fleet.queue.failed_ids() == {TASK.id}
    assert fleet.queue.in_flight().ids == frozenset()
    assert "no sign of life" in read_events(fleet.redis, TASK.id)[-1].detail


def test_a_lease_that_a_finished_job_left_behind(fleet: Fleet) -> None:
    fleet.start_by_hand(TASK, "x", until=NOW)
    fleet.redis.hset(f"rq:job:{TASK.id}", "status", "finished")
    return_lost_jobs(fleet.redis, QUEUE, NOW)
    assert fleet.queue.in_flight().ids == frozenset()
    assert fleet.outcomes(TASK) == []


def test_workers_that_are_gone_are_forgotten(fleet: Fleet) -> None:
    fleet.redis.sadd(f"rq:workers:{QUEUE}", "rq:worker:gone")
    fleet.redis.sadd("rq:workers", "rq:worker:gone")
    return_lost_jobs(fleet.redis, QUEUE, NOW)
    assert fleet.redis.smembers("rq:workers") == set()


class TestGracePeriod:
    """After an outage, those who live renew their leases before any is judged."""

    def look(self, fleet: Fleet, seconds: float) -> bool:
        return in_grace_period(fleet.redis, QUEUE, LEASE, NOW + seconds)

    def test_comes_after_a_whole_lease_in_which_nobody_looked(self, fleet: Fleet) -> None:
        assert self.look(fleet, 0), "nobody ever looked"
        assert not self.look(fleet, LEASE)
        assert not self.look(fleet, 2 * LEASE)
        assert self.look(fleet, 3 * LEASE + 0.25)

    def test_lasts_for_half_a_lease(self, fleet: Fleet) -> None:
        assert self.look(fleet, 0)
        assert self.look(fleet, LEASE / 2 - 0.25)
        assert not self.look(fleet, LEASE / 2)
        assert not self.look(fleet, LEASE / 2 + 1)

    def test_of_garbage(self, fleet: Fleet) -> None:
        for key in ("looked", "grace"):
            fleet.redis.set(f"bitfleet:{key}:{QUEUE}", "garbage")
        assert self.look(fleet, 0)
        assert not self.look(fleet, LEASE / 2)
