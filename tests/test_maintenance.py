"""Looking after lost jobs: returned once, and only when their lease is over and no outage has just ended."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.jobs.history import Event, add_event, read_events
from tests.lease_fleet import LEASE, QUEUE, Fleet
from tests.tasks import image_task
from worker.jobs.maintenance import in_grace_period, return_job, return_lost_jobs, tidy
from worker.jobs.verdict import MAX_SILENCES

TASK = image_task(0)


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(redis_url, tmp_path)
    yield fleet
    fleet.close()


def test_many_at_once_return_a_job_once(fleet: Fleet) -> None:
    for _ in range(20):
        fleet.redis.flushall()
        fleet.start_by_hand(TASK, "x", until=time.time() - 1)
        with ThreadPoolExecutor(4) as pool:
            cleaners = [pool.submit(return_lost_jobs, fleet.redis, QUEUE) for _ in range(8)]
        assert [cleaner.result() for cleaner in cleaners] == [None] * 8
        assert fleet.queue.in_flight().queued == (TASK.id,)
        assert fleet.outcomes(TASK) == ["silent"]


def test_a_lease_is_left_alone_until_it_is_over(fleet: Fleet) -> None:
    fleet.start_by_hand(TASK, "x", until=time.time() + LEASE)
    return_lost_jobs(fleet.redis, QUEUE)
    assert fleet.queue.in_flight().started == {TASK.id}
    assert fleet.queue.in_flight().queued == ()
    fleet.redis.zadd(f"rq:wip:{QUEUE}", {f"{TASK.id}:x": time.time()})
    return_lost_jobs(fleet.redis, QUEUE)
    assert fleet.queue.in_flight().queued == (TASK.id,)


def test_a_lease_that_is_renewed_just_then_is_left_alone(fleet: Fleet) -> None:
    """It had ended when the list was read."""
    fleet.start_by_hand(TASK, "x", until=time.time() + LEASE)
    lease = f"{TASK.id}:x".encode()
    assert not return_job(fleet.queue, lease, "silent", "silence", over=True)
    assert fleet.queue.in_flight().started == {TASK.id}
    assert fleet.queue.in_flight().queued == ()
    assert fleet.outcomes(TASK) == []


def test_a_job_that_was_lost_too_often_failed(fleet: Fleet) -> None:
    fleet.start_by_hand(TASK, "x", until=time.time())
    for _ in range(MAX_SILENCES - 1):
        add_event(fleet.redis, TASK.id, Event(outcome="silent", host="h", worker="w"))
    return_lost_jobs(fleet.redis, QUEUE)
    assert fleet.queue.failed_ids() == {TASK.id}
    assert fleet.queue.in_flight().ids == frozenset()
    assert "no sign of life" in read_events(fleet.redis, TASK.id)[-1].detail


def test_a_lease_that_a_finished_job_left_behind(fleet: Fleet) -> None:
    fleet.start_by_hand(TASK, "x", until=time.time())
    fleet.redis.hset(f"rq:job:{TASK.id}", "status", "finished")
    return_lost_jobs(fleet.redis, QUEUE)
    assert fleet.queue.in_flight().ids == frozenset()
    assert fleet.outcomes(TASK) == []


def test_workers_that_are_gone_are_forgotten(fleet: Fleet) -> None:
    fleet.redis.sadd(f"rq:workers:{QUEUE}", "rq:worker:gone")
    fleet.redis.sadd("rq:workers", "rq:worker:gone")
    tidy(fleet.redis, QUEUE)
    assert fleet.redis.smembers("rq:workers") == set()


class TestGracePeriod:
    """After an outage, those who live renew their leases before any is judged."""

    @pytest.fixture(autouse=True)
    def nobody_looked(self, fleet: Fleet) -> None:
        fleet.redis.delete(f"bitfleet:looked:{QUEUE}", f"bitfleet:grace:{QUEUE}")

    def look(self, fleet: Fleet) -> bool:
        return in_grace_period(fleet.redis, QUEUE, LEASE)

    def pass_seconds(self, fleet: Fleet, seconds: float) -> None:
        for key in (f"bitfleet:looked:{QUEUE}", f"bitfleet:grace:{QUEUE}"):
            if value := fleet.redis.get(key):
                fleet.redis.set(key, float(value) - seconds)

    def test_comes_after_a_whole_lease_in_which_nobody_looked(self, fleet: Fleet) -> None:
        assert self.look(fleet), "nobody ever looked"
        for _ in range(2):
            self.pass_seconds(fleet, LEASE - 1)
            assert not self.look(fleet)
        self.pass_seconds(fleet, LEASE)
        assert self.look(fleet)

    def test_lasts_for_half_a_lease(self, fleet: Fleet) -> None:
        assert self.look(fleet)
        self.pass_seconds(fleet, LEASE / 2 - 1)
        assert self.look(fleet)
        self.pass_seconds(fleet, 1)
        assert not self.look(fleet)

    def test_of_garbage(self, fleet: Fleet) -> None:
        for key in ("looked", "grace"):
            fleet.redis.set(f"bitfleet:{key}:{QUEUE}", "garbage")
        assert self.look(fleet)
        self.pass_seconds(fleet, LEASE / 2)
        assert not self.look(fleet)
