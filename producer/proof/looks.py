"""When a proof has seen enough: group-sequential looks at paired differences, with Holm over the rivals.

A look is a two-sided t test on one difference in dB per prompt. The levels of the looks are spent so that a
rival that is as good as the plan is called better or worse in at most 5% of all proofs (alpha spending;
Jennison and Turnbull, Group Sequential Methods, 2000). Where there are several rivals, each look shares its
level among those that are not decided yet (Holm 1979), and all levels are lowered until their sum is 5%: then
no dependence between rivals or looks can make it more.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shared.metrics import Floats

LOOKS = {8: 0.0004, 16: 0.0032, 32: 0.0096, 64: 0.020, 96: 0.030}
"""Number of prompts of each look, and its level."""
MAX_PROMPTS = max(LOOKS)
FALSE_CLAIMS = 0.05
"""The share of proofs in which something false may be claimed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """That one model is better than another."""

    better: bool
    """The plan is the better one; else the rival is."""
    prompts: int
    """The look at which it was seen."""


def looks_until(prompts: int) -> list[int]:
    """Return the numbers of prompts of all looks up to this one, which is the last."""
    return [look for look in LOOKS if look < prompts] + [prompts]


def next_look(prompts: int, most: int) -> int:
    """Return the number of prompts of the look after `prompts`; `most` at the end."""
    return min([look for look in LOOKS if look > prompts] + [most], key=lambda look: (look < prompts, look))


def level_at(prompts: int) -> float:
    """Return the level of a look: of the last one on the list that it reaches; 0 below the first."""
    return max((level for look, level in LOOKS.items() if look <= prompts), default=0.0)


def claims(gains: Mapping[str, Floats], most: int = MAX_PROMPTS) -> dict[str, Claim]:
    """Return what can be claimed, by rival. Looks of fewer prompts come first, and what they claim stays.

    Args:
        gains: by rival, (n,) PSNR of the plan less PSNR of the rival in dB; the same prompts for all, in the
            order in which they were drawn.
        most: the number of prompts at which the proof ends, whatever it says.
    """
    found: dict[str, Claim] = {}
    prompts = min((len(values) for values in gains.values()), default=0)
    for look in looks_until(prompts):
        if look < prompts or look in LOOKS or look == most:
            _look({name: values[:look] for name, values in gains.items()}, look, found)
    return found


def _look(gains: Mapping[str, Floats], prompts: int, found: dict[str, Claim]) -> None:
    """Add what one look claims, by Holm's steps: the smallest p first, until one is too large."""
    level = level_at(prompts)
    if len(gains) > 1:
        level *= FALSE_CLAIMS / sum(LOOKS.values())
    open_ones = {name: p_value(values) for name, values in gains.items() if name not in found}
    for step, (name, p) in enumerate(sorted(open_ones.items(), key=lambda item: item[1])):
        if level == 0 or p > level / (len(open_ones) - step):
            return
        found[name] = Claim(better=bool(gains[name].mean() > 0), prompts=prompts)


def p_value(gains: Floats) -> float:
    """Return the p value of a two-sided t test that (n,) differences have mean 0; 1 if n is below 2."""
    from scipy.special import stdtr

    if len(gains) < 2 or not gains.any():
        return 1.0
    error = standard_error(gains)
    if error == 0:
        return 0.0
    return float(2 * stdtr(len(gains) - 1, -abs(gains.mean()) / error))


def interval(gains: Floats, level: float) -> tuple[float, float]:
    """Return the ends of the interval for the mean of (n,) differences that a test of `level` makes.

    With the level of its look, such intervals hold at all looks together (repeated confidence intervals).
    """
    from scipy.special import stdtrit

    if len(gains) < 2 or level <= 0:
        return -np.inf, np.inf
    reach = float(stdtrit(len(gains) - 1, 1 - level / 2)) * standard_error(gains)
    return float(gains.mean()) - reach, float(gains.mean()) + reach


def standard_error(gains: Floats) -> float:
    """Return the standard error of the mean of (n,) differences, n at least 2."""
    return float(gains.std(ddof=1) / np.sqrt(len(gains)))
