"""What a changed weight does to the guided velocity, sample by sample, in float64."""

import numpy as np

from shared.layout.npz import Array

METRICS = ("squared_error", "squared_reference", "cosine", "max_abs")


def compare(velocity: Array, reference: Array) -> dict[str, Array]:
    """Metrics (S,) float64 of velocities (S, H, W, C) against their references."""
    v = velocity.reshape(len(velocity), -1).astype(np.float64)
    v_ref = reference.reshape(len(reference), -1).astype(np.float64)
    difference = v - v_ref
    squared_reference = (v_ref**2).sum(axis=1)
    norms = np.sqrt((v**2).sum(axis=1) * squared_reference)
    return {
        "squared_error": (difference**2).sum(axis=1),
        "squared_reference": squared_reference,
        "cosine": np.divide((v * v_ref).sum(axis=1), norms, out=np.ones_like(norms), where=norms > 0),
        "max_abs": np.abs(difference).max(axis=1),
    }


def is_tight(squared_error: Array, squared_reference: Array, image: Array, percent: float) -> bool:
    """Whether the 95% interval of the relative error over these samples is within +- `percent` of it.

    The relative error is the root of a ratio of sums; the ratio's standard error is the usual one of a
    ratio estimator (Cochran, Sampling Techniques, 2.11), over images where there are two or more: the
    steps of one trajectory are far from independent. Fewer than 4 images, or samples, tell nothing.
    """
    images, unit = np.unique(image, return_inverse=True)
    if len(images) < 2:
        unit = np.arange(len(image))
    error, reference = (np.bincount(unit, values) for values in (squared_error, squared_reference))
    n = len(error)
    if n < 4 or error.sum() == 0 or reference.sum() == 0:
        return False
    ratio = error.sum() / reference.sum()
    residual = error - ratio * reference
    standard_error = np.sqrt(n / (n - 1) * (residual**2).sum()) / reference.sum()
    # The root halves what is small against 1.
    return bool(1.96 * standard_error / 2 <= ratio * percent / 100)
