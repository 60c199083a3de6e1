"""How much a changed weight changes the guided velocity, sample by sample, in float64."""

import numpy as np

from shared.layout.npz import Array
from shared.metrics import relative_error, relative_error_interval

METRICS = ("squared_error", "squared_reference", "cosine", "max_abs")


def compare(velocity: Array, reference: Array) -> dict[str, Array]:
    """Return metrics (S,) float64 of velocities (S, H, W, C) against their references."""
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
    """Return whether the 95% interval of the relative error lies within +- `percent` of it.

    The interval is that of the results, so images decide: fewer than four tell nothing.
    """
    value = relative_error(squared_error.sum(), squared_reference.sum())
    _, high = relative_error_interval(squared_error, squared_reference, image)
    # The upper end is farther away than the lower one. If there is no error at all, nothing is certain.
    return bool(value > 0 and high <= value * (1 + percent / 100))
