"""Choose one option for each row: by Lagrange first, the rest by HiGHS (scipy's milp).

What can be in no better solution is fixed by reduced costs: with the prices of the limits, an option whose
priced value is above its row's least by more than the gap is left out. Of 540 rows with 19 options some
dozens remain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from producer.plan.frontier import Frontier, Solution
from shared.metrics import Booleans, Floats, Integers

SECONDS = 10.0
"""Time limit of HiGHS."""
TOLERANCE = 1e-4
"""A gap that is small enough. Scores are off by percents."""
HALVINGS = 60
HIGHS_TOLERANCE = 1e-5
"""HiGHS is content with an absolute gap of a millionth, and sums with errors of that size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The sum of the chosen sizes may not be larger."""

    size: Floats
    """(R, K)."""
    most: float

    def holds(self, chosen: Integers) -> bool:
        """Return whether a choice is within the limit."""
        return float(self.size[np.arange(len(chosen)), chosen].sum()) <= self.most


def solve(
    value: Floats,
    allowed: Booleans,
    limit: Limit,
    extra: Limit | None = None,
    *,
    seconds: float = SECONDS,
    tolerance: float = TOLERANCE,
) -> Solution:
    """Return one option for each row, such that the sum of values is small and each limit holds.

    Args:
        value: (R, K), none negative.
        allowed: (R, K), one option a row at least.
        limit: such as bytes.
        extra: a second limit, such as seconds.
        seconds: the time that HiGHS may take. A solution of Lagrange's is there before.
        tolerance: a gap with which no further search is made.

    Raises:
        ValueError: nothing is within the limits.
    """
    frontier = Frontier(value, limit.size, allowed)
    priced = frontier.at(limit.most)
    best, prices = priced.solution, [priced.price]
    limits = [limit]
    if extra is not None:
        limits.append(extra)
        prices.append(0.0)
        if not extra.holds(best.chosen):
            best, prices = _with_two(value, allowed, limit, extra, best.bound)
    if best.gap <= tolerance:
        return best
    return _searched(value, allowed, limits, prices, best, seconds, tolerance)


def _with_two(
    value: Floats, allowed: Booleans, limit: Limit, extra: Limit, bound: float
) -> tuple[Solution, list[float]]:
    """Price the extra limit into the values, and look for the least price at which it holds.

    Each price p gives a bound: the least of (values + p sizes), less p times the limit.
    """
    least = np.where(allowed, extra.size, np.inf).min(axis=1).sum()
    if least > extra.most:
        raise ValueError(f"the extra limit of {extra.most:g} is below the smallest sum {least:g}")
    every = np.arange(len(value))
    best: Solution | None = None
    # From a price that is next to nothing to one beside which values are next to nothing.
    unit = max(float(np.where(allowed, value, 0).max()), 1e-300) / max(float(extra.size.max()), 1e-300)
    low, high = np.log(unit) - 40, np.log(unit) + 40
    prices = [0.0, 0.0]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        price = float(np.exp(middle))
        priced = Frontier(value + price * extra.size, limit.size, allowed).at(limit.most)
        found = priced.solution
        if found.bound - price * extra.most >= bound:
            bound, prices = found.bound - price * extra.most, [priced.price, price]
        if extra.holds(found.chosen):
            high = middle
            total = float(value[every, found.chosen].sum())
            if best is None or total < best.value:
                best = Solution(chosen=found.chosen, value=total, bound=0.0)
        else:
            low = middle
    if best is None:
        raise ValueError("no choice was found within both limits")
    return Solution(chosen=best.chosen, value=best.value, bound=min(best.value, max(0.0, bound))), prices


def _searched(
    value: Floats,
    allowed: Booleans,
    limits: Sequence[Limit],
    prices: Sequence[float],
    best: Solution,
    seconds: float,
    tolerance: float,
) -> Solution:
    """Return what HiGHS finds among the options that can be in a better solution; else `best`."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    priced = np.where(allowed, value, np.inf)
    for limit, price in zip(limits, prices, strict=True):
        priced = priced + price * limit.size
    excess = priced - priced.min(axis=1, keepdims=True)
    margin = best.value - best.bound
    every = np.arange(len(value))
    kept = allowed & (excess <= margin * (1 + 1e-9))
    kept[every, best.chosen] = True
    rows, options = np.nonzero(kept)
    # Differences to what is there already, in units of the margin: better solutions lie between -1 and 0.
    before = best.chosen[rows]
    gain = (value[rows, options] - value[rows, before]) / margin
    count = len(rows)
    constraints = [LinearConstraint(csr_array((np.ones(count), (rows, np.arange(count)))), 1, 1)]
    for limit in limits:
        growth = limit.size[rows, options] - limit.size[rows, before]
        unit = _unit(growth)
        most = (limit.most - limit.size[every, best.chosen].sum()) / unit
        constraints.append(LinearConstraint(growth[None] / unit, -np.inf, most))
    found = milp(
        gain,
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"time_limit": seconds, "mip_rel_gap": tolerance * best.value / margin},
    )
    bound = best.bound
    if found.mip_dual_bound is not None and np.isfinite(found.mip_dual_bound):
        bound = max(bound, best.value + (float(found.mip_dual_bound) - HIGHS_TOLERANCE) * margin)
    solution = Solution(chosen=best.chosen, value=best.value, bound=min(bound, best.value))
    if found.x is None:
        return solution
    chosen = best.chosen.copy()
    taken = found.x > 0.5
    chosen[rows[taken]] = options[taken]
    total = float(value[every, chosen].sum())
    # HiGHS allows a millionth more than a limit; the limits here are exact.
    if total <= best.value and all(limit.holds(chosen) for limit in limits):
        return Solution(chosen=chosen, value=total, bound=min(bound, total))
    return solution


def _unit(growth: Floats) -> float:
    """Return a unit for sizes: their greatest common divisor where they are whole, else the largest."""
    whole = np.rint(growth)
    if np.array_equal(whole, growth) and np.abs(growth).max(initial=0) < 2**53:
        return float(max(1, np.gcd.reduce(np.abs(whole).astype(np.int64))))
    return float(np.abs(growth).max(initial=0)) or 1.0
