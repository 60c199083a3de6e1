"""The solver of plans: against brute force on small cases, its gap on larger ones."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array

from producer.plan.frontier import Frontier
from producer.plan.solver import TOLERANCE, Limit, solve
from shared.metrics import Booleans, Floats


def problem(seed: int, rows: int, options: int) -> tuple[Floats, Floats, Booleans]:
    """Values that fall with size, roughly, as scores fall with bits."""
    rng = np.random.default_rng(seed)
    weight = rng.choice([16, 64, 96, 256], rows)[:, None]
    size = np.sort(rng.integers(2, 20, (rows, options)), axis=1) * weight
    value = (
        weight
        * np.exp(rng.normal(0, 2, (rows, 1)) + rng.normal(0, 0.4, (rows, options)))
        * 4.0 ** (-size / weight)
    )
    allowed = rng.random((rows, options)) < 0.8
    allowed[:, -1] = True
    return value, size.astype(float), allowed


def brute(value: Floats, allowed: Booleans, *limits: Limit) -> float | None:
    """The smallest sum within the limits; None if there is none."""
    rows = np.arange(len(value))
    every = np.array(list(product(*(np.flatnonzero(row) for row in allowed))))
    within = np.all([limit.size[rows, every].sum(axis=1) <= limit.most for limit in limits], axis=0)
    return min(value[rows, every].sum(axis=1)[within], default=None)


@pytest.mark.parametrize("seed", range(40))
def test_small_cases_are_solved_as_by_brute_force(seed: int) -> None:
    value, size, allowed = problem(seed, rows=5, options=4)
    frontier = Frontier(value, size, allowed)
    for part in (0.0, 0.1, 0.35):
        limit = Limit(size=size, most=np.floor(frontier.smallest + part * (size.sum() / 3)))
        best = brute(value, allowed, limit)
        solution = solve(value, allowed, limit, tolerance=0.0)
        assert limit.holds(solution.chosen)
        assert allowed[np.arange(5), solution.chosen].all()
        # HiGHS ends with a gap of a millionth of what was open.
        assert solution.value == pytest.approx(best, rel=1e-6)
        assert solution.bound <= best * (1 + 1e-9)
        rough = frontier.at(limit.most).solution
        assert limit.holds(rough.chosen)
        assert rough.bound <= best * (1 + 1e-9) <= rough.value * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_two_limits_are_kept_as_by_brute_force(seed: int) -> None:
    value, size, allowed = problem(seed, rows=5, options=4)
    time = np.random.default_rng(seed).integers(1, 50, size.shape).astype(float)
    limit = Limit(size=size, most=np.median(size) * 5)
    for most in (60.0, 100.0, 140.0):
        extra = Limit(size=time, most=most)
        best = brute(value, allowed, limit, extra)
        if best is None:
            continue
        try:
            solution = solve(value, allowed, limit, extra, tolerance=0.0)
        except ValueError:
            # With prices alone a feasible choice is found nearly always, not always.
            continue
        assert limit.holds(solution.chosen)
        assert extra.holds(solution.chosen)
        assert solution.value == pytest.approx(best, rel=1e-6)


def test_the_gap_is_small_and_proven_on_a_hundred_models() -> None:
    for seed in range(100):
        value, size, allowed = problem(1000 + seed, rows=170, options=19)
        frontier = Frontier(value, size, allowed)
        limit = Limit(size=size, most=frontier.smallest + 0.4 * (frontier.largest - frontier.smallest))
        solution = frontier.at(limit.most).solution
        assert limit.holds(solution.chosen)
        assert 0 < solution.bound <= solution.value
        assert solution.gap < 0.03, seed
        if seed % 20 == 0:
            exact = solve(value, allowed, limit)
            assert limit.holds(exact.chosen)
            assert solution.bound <= exact.bound <= exact.value <= solution.value
            assert exact.gap <= TOLERANCE


def by_milp_alone(value: Floats, limit: Limit) -> float:
    """The smallest sum as HiGHS finds it, with nothing fixed before."""
    rows, options = value.shape
    one_each = csr_array((np.ones(value.size), (np.repeat(np.arange(rows), options), np.arange(value.size))))
    found = milp(
        value.ravel() / value.min(),
        integrality=np.ones(value.size),
        bounds=(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(limit.size.ravel()[None] / 16, -np.inf, limit.most / 16),
        ],
        options={"mip_rel_gap": 1e-9},
    )
    return float((value.ravel() * np.rint(found.x)).sum())


@pytest.mark.parametrize("seed", range(6))
def test_what_is_fixed_before_highs_was_not_needed(seed: int) -> None:
    value, size, _ = problem(seed, rows=20, options=9)
    # Levels of one size: then what is fixed depends on the prices.
    value = size.max() * 4.0 ** (-size / size.max(axis=1, keepdims=True) * 6)
    allowed = np.ones(value.shape, bool)
    frontier = Frontier(value, size, allowed)
    for part in (0.3, 0.55, 0.8):
        most = np.floor(frontier.smallest + part * (frontier.largest - frontier.smallest))
        limit = Limit(size=size, most=most)
        solution = solve(value, allowed, limit, tolerance=0.0)
        assert solution.value == pytest.approx(by_milp_alone(value, limit), rel=1e-5)


def test_what_highs_finds_beyond_a_limit_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    value, size, allowed = problem(6, rows=5, options=4)
    frontier = Frontier(value, size, allowed)
    limit = Limit(size=size, most=np.floor(frontier.smallest + 0.1 * size.sum() / 3))
    assert frontier.at(limit.most).solution.gap > 0
    beyond = SimpleNamespace(mip_dual_bound=None, x=None)

    def no_limit(gain: Floats, **options: Any) -> SimpleNamespace:
        """The best of each row, whatever its size."""
        one_each = options["constraints"][0].A.toarray().astype(bool)
        beyond.x = np.zeros(len(gain))
        for row in one_each:
            beyond.x[np.flatnonzero(row)[np.argmin(gain[row])]] = 1
        return beyond

    monkeypatch.setattr("scipy.optimize.milp", no_limit)
    solution = solve(value, allowed, limit, tolerance=0.0)
    assert limit.holds(solution.chosen)
    chosen = np.array([np.argmin(np.where(a, v, np.inf)) for a, v in zip(allowed, value, strict=True)])
    assert not limit.holds(chosen)


def test_what_can_not_be_reached_is_refused() -> None:
    value, size, allowed = problem(0, rows=5, options=4)
    limit = Limit(size=size, most=Frontier(value, size, allowed).smallest - 1)
    with pytest.raises(ValueError, match="below the smallest size"):
        solve(value, allowed, limit)
    wide = Limit(size=size, most=1e9)
    with pytest.raises(ValueError, match="extra limit"):
        solve(value, allowed, wide, Limit(size=size, most=1.0))


def test_values_of_zero_take_the_smallest_option() -> None:
    """A dead layer's, for example."""
    value, size, allowed = problem(3, rows=5, options=4)
    value[2] = 0.0
    solution = solve(value, allowed, Limit(size=size, most=1e9))
    smallest = np.where(allowed[2], size[2], np.inf).min()
    assert size[2, solution.chosen[2]] == smallest
