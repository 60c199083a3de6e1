"""A small fleet on paper: every task is done, nothing beats the ideal, and what breaks a lease shows."""

from dataclasses import replace
from random import Random

import pytest

from benchmarks.fleet import simulate as simulator
from benchmarks.fleet.simulate import KINDS, Outcome, plan_failures, simulate
from benchmarks.fleet.workload import make_workload
from worker.jobs import lease_worker

pytestmark = pytest.mark.slow

TASKS, FAILURES, SEED = 60, 8, 3


def run(url: str, *, hedge: bool = True, seed: int = SEED, limit: float = 10) -> Outcome:
    return simulate(url, tasks=TASKS, failures=FAILURES, hedge=hedge, seed=seed, limit=limit)


def test_every_task_is_done_once_and_the_same_seed_gives_the_same(redis_url: str, redis: object) -> None:
    first = run(redis_url)
    assert set(first.stored) == make_workload(TASKS, images=3).loads.keys()
    assert set(first.stored.values()) == {1}
    assert first.failed == 0
    assert first.makespan >= first.ideal
    assert first.away > 0
    redis.flushall()  # type: ignore[attr-defined]
    assert replace(run(redis_url), real_seconds=first.real_seconds) == first


def test_a_fleet_that_returns_no_lost_jobs_does_not_end(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_worker, "return_lost_jobs", lambda *_: None)
    with pytest.raises(TimeoutError):
        run(redis_url, hedge=False, limit=3)


def test_a_fleet_that_loses_its_leases_shows_it(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without renewals every long task is done twice."""
    monkeypatch.setattr("worker.jobs.lease.renew_lease", lambda *_: True)
    assert run(redis_url).twice > 0.2


def test_failures_are_of_all_kinds_and_depend_on_the_seed() -> None:
    plan = plan_failures(8, 100.0, Random(1))
    assert [failure.kind for failure in plan] == [*KINDS, *KINDS]
    assert plan == plan_failures(8, 100.0, Random(1)) != plan_failures(8, 100.0, Random(2))
    assert all(0 <= failure.after <= 100 for failure in plan)
    low, _ = simulator.ASLEEP_SECONDS
    assert all(failure.seconds >= low > 45 for failure in plan if failure.kind == "asleep")
