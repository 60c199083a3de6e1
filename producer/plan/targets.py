"""What a plan is to reach: a size, a size like another model's, or an error."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from humanfriendly import format_size

from producer.plan.keep import parse_choice
from producer.plan.offers import Offers
from producer.plan.rivals import uniform
from producer.plan.solver import TOLERANCE, Limit, solve
from shared.choices import DEFAULT_GROUP_SIZE
from shared.errors import InputError
from shared.metrics import Floats

MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One thing to reach."""

    text: str
    """As an option: `--target-bpw 4.5`."""
    budget: Callable[[Offers, Floats], int]
    """The bytes of the whole transformer, given what is offered and the scores (R, K)."""


def target_bpw(bits: float) -> Target:
    """Return the size of so many bits for each parameter of the transformer."""
    text = f"--target-bpw {bits:g}"
    return Target(text=text, budget=lambda offers, _: _within(offers, bits * parameters_of(offers) / 8, text))


def target_mb(megabytes: float) -> Target:
    """Return a size in millions of bytes."""
    text = f"--target-mb {megabytes:g}"
    return Target(text=text, budget=lambda offers, _: _within(offers, megabytes * MEGABYTE, text))


def like(name: str) -> Target:
    """Return the size of a uniform model: `uniform:4` (groups of 64) or `uniform:4/32`.

    Raises:
        InputError: this is no such name.
    """
    word, _, choice = name.partition(":")
    if word != "uniform" or not choice:
        raise InputError(f"--like {name!r} is no model; write uniform:4, or uniform:4/32 for groups of 32")
    asked = parse_choice(choice if "/" in choice else f"{choice}/{DEFAULT_GROUP_SIZE}")
    text = f"--like uniform:{asked.label}"
    return Target(
        text=text,
        budget=lambda offers, _: _within(offers, offers.variant_bytes(uniform(offers, asked).layers), text),
    )


def max_error(relative_error: float) -> Target:
    """Return the smallest size whose predicted relative error of the output is at most this."""
    text = f"--max-error {relative_error:g}"
    return Target(text=text, budget=lambda offers, scores: _smallest(offers, scores, relative_error, text))


def parameters_of(offers: Offers) -> int:
    """Return the number of parameters of the whole transformer."""
    return full_bytes(offers) // 2


def full_bytes(offers: Offers) -> int:
    """Return the bytes of the whole transformer with all weights as they are, in 16 bits."""
    return offers.other_bytes + sum(2 * layer.shape[0] * layer.shape[1] for layer in offers.layers)


def reach(offers: Offers) -> tuple[int, int]:
    """Return the bytes of the smallest and of the largest model on offer."""
    smallest = np.where(offers.allowed, offers.stored_bytes, np.iinfo(np.int64).max).min(axis=1).sum()
    largest = np.where(offers.allowed, offers.stored_bytes, 0).max(axis=1).sum()
    return offers.other_bytes + int(smallest), offers.other_bytes + int(largest)


def _within(offers: Offers, size: float, text: str) -> int:
    low, high = reach(offers)
    way = "less"
    if size < low:
        way = "more, offer fewer bits (`producer enqueue-levels --bits`), or keep less (--keep)"
    if not low <= size <= full_bytes(offers):
        count = parameters_of(offers)
        raise InputError(
            f"{text} can't be reached: what is offered takes {format_size(low)} to {format_size(high)}, "
            f"{_down(8 * low / count, up=True)} to {_down(8 * high / count)} bits a weight; ask for {way}"
        )
    return int(size)


def _down(value: float, *, up: bool = False) -> str:
    """Return a number with two decimals that can be asked for."""
    rounding = np.ceil if up else np.floor
    return f"{rounding(value * 100) / 100:g}"


def _smallest(offers: Offers, scores: Floats, relative_error: float, text: str) -> int:
    rows = np.arange(len(scores))
    usable = np.where(offers.allowed, scores, np.inf)
    size = offers.stored_bytes.astype(np.float64)
    best = float(np.sqrt(usable.min(axis=1).sum()))
    worst = float(np.sqrt(scores[rows, np.where(offers.allowed, size, np.inf).argmin(axis=1)].sum()))
    if not best <= relative_error <= worst:
        raise InputError(
            f"{text} can't be reached: the predicted relative error goes from {best:.3g} with the largest to "
            f"{worst:.3g} with the smallest of what is offered"
        )
    # The plan of this size is solved for by itself, to a gap of its own, which must not be what is too much.
    most = max(best**2, relative_error**2 * (1 - 2 * TOLERANCE))
    solution = solve(size, offers.allowed, Limit(size=scores, most=most))
    return offers.total_bytes(solution.chosen)
