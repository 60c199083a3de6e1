"""What a changed weight does to the guided velocity, sample by sample, in float64."""

from collections.abc import Sequence

import numpy as np

from shared.npz import Array

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


def is_tight(parts: Sequence[dict[str, Array]], percent: float, *, at_least: int = 8) -> bool:
    """Whether the relative error's 95% interval is within +- `percent` of it.

    The relative error is a ratio of sums over samples; its standard error is the usual one of a ratio
    estimator (Cochran, Sampling Techniques, 2.11), samples taken as independent.
    """
    error = np.concatenate([part["squared_error"] for part in parts])
    reference = np.concatenate([part["squared_reference"] for part in parts])
    n = len(error)
    if n < at_least or error.sum() == 0 or reference.sum() == 0:
        return False
    ratio = error.sum() / reference.sum()
    residual = error - ratio * reference
    standard_error = np.sqrt(n / (n - 1) * (residual**2).sum()) / reference.sum()
    return bool(1.96 * standard_error <= ratio * percent / 100)
