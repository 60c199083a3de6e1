"""The seconds that a step takes: another limit beside bytes, from a table that a machine measured."""

import csv
from pathlib import Path

import numpy as np

from producer.plan.keep import FULL, parse_choice
from producer.plan.offers import Offers
from shared.errors import InputError
from shared.metrics import Floats
from shared.plan import Choice

COLUMNS = ("bits", "group_size", "seconds")
Times = dict[Choice | None, float]


def read_times(path: Path) -> Times:
    """Return the seconds of one step with all layers at one choice, from a CSV: bits, group_size, seconds.

    Bits of 16 with an empty group size stand for the weights as they are.

    Raises:
        InputError: the file is missing, or no such table.
    """
    try:
        rows = list(csv.DictReader(path.read_text("utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {error}; name another with --step-times") from None
    times: Times = {}
    for line, row in enumerate(rows, start=2):
        bits, size, seconds = (str(row.get(name) or "").strip() for name in COLUMNS)
        try:
            value = float(seconds)
            choice = None if bits == str(FULL) else parse_choice(f"{bits}/{size}")
        except (ValueError, InputError):
            value, choice = -1.0, None
        if not 0 < value < np.inf:
            raise InputError(
                f"{path}, line {line}: write bits, group_size and seconds, as in `4,64,0.31`, or `16,,0.25` "
                "for the weights as they are"
            )
        times[choice] = value
    if not times:
        raise InputError(f"{path} holds no times; its columns are {', '.join(COLUMNS)}")
    return times


def seconds_of(offers: Offers, times: Times) -> Floats:
    """Return (R, K): the share of a step's seconds that each row takes with each option, by its weights.

    An option that the table lacks takes for ever.
    """
    sizes = np.array([float(layer.shape[0] * layer.shape[1]) for layer in offers.layers])
    share = offers.by_row(sizes / sizes.sum())
    by_option = np.array([times.get(option, np.inf) for option in offers.options])
    seconds: Floats = share[:, None] * by_option
    return seconds
