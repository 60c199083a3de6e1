"""What a change of weights does to the output, from per-sample sums, with a bootstrap interval.

With v the output, v_q the output with the quantized weight, and sums over all samples and elements:

    mse            = sum |v_q - v|^2 / elements
    relative_error = sqrt(sum |v_q - v|^2 / sum |v|^2)
    sqnr_db        = 10 log10(sum |v|^2 / sum |v_q - v|^2) = -20 log10(relative_error)

No error at all gives relative_error 0 and sqnr_db infinite; a zero reference gives NaN, or infinity where
the error is not zero. Arrays have the samples last; axes before them are candidates, done at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.integer[Any]]]
Booleans = np.ndarray[Any, np.dtype[np.bool_]]
Bucket = Literal["early", "mid", "late"]
Unit = Literal["image", "sample"]

BUCKETS: tuple[Bucket, ...] = ("early", "mid", "late")


def bucket_of(step_index: int, num_steps: int) -> Bucket:
    """The third of the trajectory that a step lies in; step 0 has the most noise.

    Raises:
        ValueError: no such step.
    """
    if not 0 <= step_index < num_steps:
        raise ValueError(f"no step {step_index} in {num_steps} steps")
    return BUCKETS[3 * step_index // num_steps]


def in_bucket(step_index: Integers, num_steps: int, bucket: Bucket) -> Booleans:
    """(n,) whether each sample's step lies in `bucket`."""
    return np.array([bucket_of(int(step), num_steps) == bucket for step in step_index], dtype=bool)


def relative_error(squared_error: Floats, squared_reference: Floats) -> Floats:
    """Sums of squares to relative error; 0/0 is NaN, anything else over 0 is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = np.sqrt(np.divide(squared_error, squared_reference, dtype=np.float64))
    return ratio


def sqnr_db(squared_error: Floats, squared_reference: Floats) -> Floats:
    """Sums of squares to the signal to quantization noise ratio in dB; infinite without any error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(squared_reference, squared_error, dtype=np.float64)
        decibel: Floats = 10 * np.log10(ratio)
    return decibel


def mean_squared_error(squared_error: Floats, output_size: int | Integers) -> Floats:
    """(..., n) squared errors to mse; `output_size` is the number of elements of one sample's output."""
    mse: Floats = squared_error.sum(axis=-1) / (squared_error.shape[-1] * np.asarray(output_size))
    return mse


@dataclass(frozen=True, slots=True)
class Resampling:
    """What a bootstrap draws: whole images where there are two or more, else single samples.

    The samples of one image are steps of one trajectory and far from independent; drawing them one by one
    would give intervals that are too narrow.
    """

    unit: Unit
    membership: Floats
    """(n, units): 1 where a sample belongs to a unit."""
    weights: Floats
    """(resamples, units): how often each unit was drawn."""


def resampling(image_index: Integers, *, resamples: int = 1000, seed: int = 0) -> Resampling | None:
    """Draw, once for all candidates that were measured on these samples; None for less than two units.

    Args:
        image_index: (n,) the image of each sample.
        resamples: how many.
        seed: equal seeds give equal draws.
    """
    images, unit_of_sample = np.unique(image_index, return_inverse=True)
    unit: Unit = "image"
    units = len(images)
    if units < 2:
        unit, units, unit_of_sample = "sample", len(image_index), np.arange(len(image_index))
    if units < 2:
        return None
    weights = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=resamples)
    return Resampling(unit, np.eye(units)[unit_of_sample], weights.astype(np.float64))


def relative_error_interval(
    squared_error: Floats, squared_reference: Floats, draws: Resampling, *, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Percentile bootstrap (Efron 1979) of the relative error.

    Args:
        squared_error: (..., n).
        squared_reference: (..., n).
        draws: over the same n samples.
        level: the interval's coverage.

    Returns:
        Lower and upper end, each (...,).
    """
    errors = squared_error @ draws.membership @ draws.weights.T
    references = squared_reference @ draws.membership @ draws.weights.T
    tail = (1 - level) / 2
    low, high = np.quantile(relative_error(errors, references), [tail, 1 - tail], axis=-1)
    return low, high


def most_sensitive(scores: Iterable[tuple[str, float | None]], count: int) -> list[str]:
    """Names by falling score; those without a score are left out, ties keep their order."""
    scored = [(name, score) for name, score in scores if score is not None and not np.isnan(score)]
    return [name for name, _ in sorted(scored, key=lambda pair: -pair[1])[:count]]
