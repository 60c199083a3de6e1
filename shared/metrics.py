"""Metrics of how much a change of weights changes the output, with intervals over images.

With v the output, v_q the output with the quantized weight, and sums over all samples and elements:

    mse            = sum |v_q - v|^2 / elements
    relative_error = sqrt(sum |v_q - v|^2 / sum |v|^2)
    sqnr_db        = 10 log10(sum |v|^2 / sum |v_q - v|^2) = -20 log10(relative_error)

Without any error, relative_error is 0 and sqnr_db is infinite. With a zero reference they are NaN, or
infinite if the error is not zero. The last axis of every array is the samples; axes before it are candidates.
"""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.integer[Any]]]
Booleans = np.ndarray[Any, np.dtype[np.bool_]]
Bucket = Literal["early", "mid", "late"]

BUCKETS: tuple[Bucket, ...] = ("early", "mid", "late")

MAX_PSNR_DB = 100.0
"""The PSNR of what is equal, and the largest there is."""

MIN_IMAGES = 4
"""The least number of images for an interval."""


def bucket_of(step_index: int, num_steps: int) -> Bucket:
    """Return the third of the trajectory that a step is in. Step 0 has the most noise.

    Raises:
        ValueError: there is no such step.
    """
    if not 0 <= step_index < num_steps:
        raise ValueError(f"no step {step_index} in {num_steps} steps")
    return BUCKETS[3 * step_index // num_steps]


def in_bucket(step_index: Integers, num_steps: int, bucket: Bucket) -> Booleans:
    """Return (n,) booleans: whether each sample's step is in `bucket`."""
    return np.array([bucket_of(int(step), num_steps) == bucket for step in step_index], dtype=bool)


def relative_error(squared_error: Floats, squared_reference: Floats) -> Floats:
    """Return the relative error from sums of squares. 0/0 is NaN, other values over 0 are infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = np.sqrt(np.divide(squared_error, squared_reference, dtype=np.float64))
    return ratio


def sqnr_db(squared_error: Floats, squared_reference: Floats) -> Floats:
    """Return the signal to quantization noise ratio in dB from sums of squares; infinite without error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(squared_reference, squared_error, dtype=np.float64)
        decibel: Floats = 10 * np.log10(ratio)
    return decibel


def psnr_db(squared_error: Floats, output_size: Integers | int, peak: Floats | float) -> Floats:
    """Return the peak signal to noise ratio in dB; at most MAX_PSNR_DB, which stands for equal arrays.

    Args:
        squared_error: (...) sums of squares over all elements.
        output_size: number of elements.
        peak: largest minus smallest value of the original.
    """
    with np.errstate(divide="ignore"):
        ratio = np.divide(np.square(peak) * output_size, squared_error, dtype=np.float64)
        decibel: Floats = np.minimum(10 * np.log10(ratio), MAX_PSNR_DB)
    return decibel


def is_within_noise(squared_error: Floats, noise_squared_error: Floats) -> Booleans:
    """Return whether errors are at most twice the noise floor; False if none was measured.

    Both are sums of squares.
    """
    known = noise_squared_error > 0
    within: Booleans = known & (squared_error <= 4 * noise_squared_error)
    return within


def mean_squared_error(squared_error: Floats, output_size: int | Integers) -> Floats:
    """Return the mse of (..., n) squared errors; `output_size` is the number of elements of one output."""
    mse: Floats = squared_error.sum(axis=-1) / (squared_error.shape[-1] * np.asarray(output_size))
    return mse


def relative_error_interval(
    squared_error: Floats, squared_reference: Floats, image_index: Integers, *, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Return an interval for the relative error over all images of this kind, from how much these differ.

    The relative error is the root of a ratio of sums. Each image is left out in turn (the jackknife of a
    ratio estimator; Cochran, Sampling Techniques, 6.17), and the spread times Student's t gives the interval.
    This is done with logarithms, as in `sqnr_db`, because these are less skewed. All steps of an image count
    as one, because they are not independent.

    Args:
        squared_error: (..., n).
        squared_reference: (..., n).
        image_index: (n,): the image of each sample.
        level: the interval's coverage.

    Returns:
        Lower and upper end, each (...,). NaN if there are fewer than MIN_IMAGES images, or if no error or no
        reference remains without one of them. Both are 0 if there is no error.
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
    """Return the sums (..., images) of (..., n) values."""
    order = np.argsort(image_index, kind="stable")
    _, starts = np.unique(image_index[order], return_index=True)
    sums: Floats = np.add.reduceat(values[..., order], starts, axis=-1)
    return sums


def most_sensitive(scores: Iterable[tuple[str, float | None]], count: int) -> list[str]:
    """Return `count` names with the highest scores; None counts for nothing, and ties keep their order."""
    scored = [(name, score) for name, score in scores if score is not None and not np.isnan(score)]
    return [name for name, _ in sorted(scored, key=lambda pair: -pair[1])[:count]]
