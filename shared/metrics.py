"""What a change of weights does to the output, from per-sample sums, with an interval over images.

With v the output, v_q the output with the quantized weight, and sums over all samples and elements:

    mse            = sum |v_q - v|^2 / elements
    relative_error = sqrt(sum |v_q - v|^2 / sum |v|^2)
    sqnr_db        = 10 log10(sum |v|^2 / sum |v_q - v|^2) = -20 log10(relative_error)

No error at all gives relative_error 0 and sqnr_db infinite; a zero reference gives NaN, or infinity where
the error is not zero. Arrays have the samples last; axes before them are candidates, done at once.
"""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.integer[Any]]]
Booleans = np.ndarray[Any, np.dtype[np.bool_]]
Bucket = Literal["early", "mid", "late"]

BUCKETS: tuple[Bucket, ...] = ("early", "mid", "late")

MIN_IMAGES = 4
"""Fewer don't tell how far other images would be from them: no interval is made."""


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


def is_within_noise(squared_error: Floats, noise_squared_error: Floats) -> Booleans:
    """Whether errors are at most twice the floor, both as sums of squares; never where no floor is known."""
    known = noise_squared_error > 0
    within: Booleans = known & (squared_error <= 4 * noise_squared_error)
    return within


def mean_squared_error(squared_error: Floats, output_size: int | Integers) -> Floats:
    """(..., n) squared errors to mse; `output_size` is the number of elements of one sample's output."""
    mse: Floats = squared_error.sum(axis=-1) / (squared_error.shape[-1] * np.asarray(output_size))
    return mse


def relative_error_interval(
    squared_error: Floats, squared_reference: Floats, image_index: Integers, *, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Where the relative error of the whole population of images lies, judged by how these images differ.

    The relative error is the root of a ratio of sums, so each image is left out in turn (the jackknife of a
    ratio estimator; Cochran, Sampling Techniques, 6.17) and the spread times Student's t makes the interval.
    It is made of logarithms, that is of `sqnr_db`: errors are skewed, and there they are so least. An image
    counts once, however many of its steps were measured: the steps of one trajectory are not independent.

    Args:
        squared_error: (..., n).
        squared_reference: (..., n).
        image_index: (n,) the image of each sample.
        level: the interval's coverage.

    Returns:
        Lower and upper end, each (...,); NaN for fewer than MIN_IMAGES images, or where leaving out an image
        leaves no error or no reference; both 0 where there is no error at all.
    """
    from scipy.special import stdtrit

    error, reference = (_by_image(values, image_index) for values in (squared_error, squared_reference))
    images = error.shape[-1]
    totals = error.sum(axis=-1), reference.sum(axis=-1)
    value = relative_error(*totals)
    if images < MIN_IMAGES:
        return np.full_like(value, np.nan), np.full_like(value, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        without = np.log(relative_error(totals[0][..., None] - error, totals[1][..., None] - reference))
        deviation = without - without.mean(axis=-1, keepdims=True)
        spread = np.sqrt((images - 1) / images * (deviation**2).sum(axis=-1))
        factor = np.exp(stdtrit(images - 1, (1 + level) / 2) * spread)
        low, high = np.where(value == 0, 0.0, value / factor), np.where(value == 0, 0.0, value * factor)
    return low, high


def _by_image(values: Floats, image_index: Integers) -> Floats:
    """(..., n) values to their sums (..., images)."""
    order = np.argsort(image_index, kind="stable")
    _, starts = np.unique(image_index[order], return_index=True)
    sums: Floats = np.add.reduceat(values[..., order], starts, axis=-1)
    return sums


def most_sensitive(scores: Iterable[tuple[str, float | None]], count: int) -> list[str]:
    """Names by falling score; those without a score are left out, ties keep their order."""
    scored = [(name, score) for name, score in scores if score is not None and not np.isnan(score)]
    return [name for name, _ in sorted(scored, key=lambda pair: -pair[1])[:count]]
