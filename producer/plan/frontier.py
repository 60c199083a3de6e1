"""The best choices for every budget at once, by Lagrange's method, with a proven bound.

Each row takes one of its options; the sum of their values is to be small, the sum of their sizes at most a
budget (the multiple-choice knapsack). Where an option may be taken in part, the best is known: on the lower
convex hull of each row's (size, value) points, the steps to the next larger option are taken in falling order
of value gained per size (Sinha and Zoltners, 1979). All budgets need one sort. Only the last step is taken in
part, so the whole steps before it are near the best, and the value with the part is a bound for every choice.
"""

from dataclasses import dataclass

import numpy as np

from shared.metrics import Booleans, Floats, Integers


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """One option for each row."""

    chosen: Integers
    """(R,): the row's option."""
    value: float
    """Sum of the chosen values."""
    bound: float
    """No choice within the budget has a smaller sum."""

    @property
    def gap(self) -> float:
        """How much smaller another choice's sum can be at most, as a part of this one's."""
        return max(0.0, 1 - self.bound / self.value) if self.value > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A solution, with the price at which it was found."""

    solution: Solution
    price: float
    """Value per size of the step that was taken in part."""


class Frontier:
    """R rows with K options each."""

    def __init__(self, value: Floats, size: Floats, allowed: Booleans) -> None:
        """`value`, `size` and `allowed` are (R, K). Each row allows an option; none has a negative value."""
        self._value, self._size = value, size
        self._usable = np.where(allowed, value, np.inf)
        hulls = [_hull(value[row], size[row], allowed[row]) for row in range(len(value))]
        rows = np.repeat(np.arange(len(hulls)), [len(hull) - 1 for hull in hulls])
        start = np.array([option for hull in hulls for option in hull[:-1]], np.int64)
        end = np.array([option for hull in hulls for option in hull[1:]], np.int64)
        gain, growth = value[rows, start] - value[rows, end], size[rows, end] - size[rows, start]
        order = np.argsort(-gain / growth, kind="stable")
        self._rows, self._end = rows[order], end[order]
        self._price = (gain / growth)[order]
        self._first = np.array([hull[0] for hull in hulls], np.int64)
        every = np.arange(len(hulls))
        self.smallest = float(size[every, self._first].sum())
        """The least size."""
        self._sizes = self.smallest + np.cumsum(growth[order])
        self._gains = np.cumsum(gain[order])
        self._start_value = float(value[every, self._first].sum())

    @property
    def largest(self) -> float:
        """The size from which on nothing gets better."""
        return float(self._sizes[-1]) if len(self._sizes) else self.smallest

    def at(self, budget: float) -> Priced:
        """Return a good solution for a budget.

        Raises:
            ValueError: the budget is below the smallest size.
        """
        if budget < self.smallest:
            raise ValueError(f"a budget of {budget:g} is below the smallest size {self.smallest:g}")
        steps = int(np.searchsorted(self._sizes, budget, side="right"))
        chosen = self._first.copy()
        # Later steps of a row overwrite earlier ones.
        chosen[self._rows[:steps]] = self._end[:steps]
        every = np.arange(len(chosen))
        bound = self._start_value - (self._gains[steps - 1] if steps else 0.0)
        price = 0.0
        if steps < len(self._price):
            price = float(self._price[steps])
            spent = self._sizes[steps - 1] if steps else self.smallest
            bound -= price * (budget - spent)
        self._fill(chosen, budget)
        value = float(self._value[every, chosen].sum())
        # Rounding must not put the bound above what was found.
        return Priced(
            solution=Solution(chosen=chosen, value=value, bound=min(value, max(0.0, float(bound)))),
            price=price,
        )

    def _fill(self, chosen: Integers, budget: float) -> None:
        """Spend what is left of the budget: again and again the option that gains most of all that fit."""
        every = np.arange(len(chosen))
        size, value = self._size[every, chosen], self._value[every, chosen]
        left = budget - size.sum()
        while True:
            gain = np.where(self._size - size[:, None] <= left, value[:, None] - self._usable, 0.0)
            row, option = divmod(int(np.argmax(gain)), gain.shape[1])
            if gain[row, option] <= 0:
                return
            chosen[row] = option
            left -= self._size[row, option] - size[row]
            size[row], value[row] = self._size[row, option], self._value[row, option]


def _hull(value: Floats, size: Floats, allowed: Booleans) -> list[int]:
    """Return the options on the lower convex hull, from the smallest to the one with the least value."""
    order = [int(option) for option in np.lexsort((value, size)) if allowed[option]]
    hull: list[int] = []
    for option in order:
        if hull and value[option] >= value[hull[-1]]:
            continue
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], option, value, size):
            hull.pop()
        hull.append(option)
    return hull


def _is_above(left: int, middle: int, right: int, value: Floats, size: Floats) -> bool:
    """Return whether the middle point is on or above the line from the left to the right point."""
    before = (value[left] - value[middle]) * (size[right] - size[middle])
    after = (value[middle] - value[right]) * (size[middle] - size[left])
    return bool(before <= after)
