"""Checks that this model made the samples: it must give the velocities that the samples imply."""

import numpy as np

from shared.errors import RunMismatchError
from shared.layout.npz import Array
from shared.layout.sample_set import SampleSet

# Two machines, or two micro-batch sizes, round differently, and CFG multiplies what they differ by. Another
# model, or another cfg_weight, is off by tens of percent.
_TOLERANCE = {"float32": 1e-2, "float16": 5e-2}


def check_reference(samples: SampleSet, rows: Array, velocity: Array, *, half_precision: bool) -> None:
    """Compare the model's guided velocity with (x_next - x) / (sigma_next - sigma).

    What is allowed: ||v - v_implied|| <= tolerance ||v_implied|| + u (||x|| + ||x_next||) / |dsigma|. The
    last term bounds what rounding x and x_next to the stored dtype, of unit roundoff u, adds to v_implied.

    Args:
        samples: the sample set.
        rows: (S,) places in it.
        velocity: (S, H, W, C), the model's, at those places.
        half_precision: whether the model computes in 16 bits.

    Raises:
        RunMismatchError: another model, or other settings, made these samples.
    """
    known = samples.has_next[rows]
    rows, velocity = rows[known], velocity[known]
    if len(rows) == 0:
        return
    stored = np.finfo(np.result_type(samples.x.dtype, samples.x_next.dtype))
    tolerance = _TOLERANCE["float16" if half_precision or stored.bits == 16 else "float32"]
    x, x_next = (_flat(array[rows]) for array in (samples.x, samples.x_next))
    dsigma = np.abs((samples.sigma_next - samples.sigma)[rows].astype(np.float64))
    implied = _flat(samples.implied_velocity[rows])
    rounding = float(stored.eps) / 2 * (_norm(x) + _norm(x_next)) / np.maximum(dsigma, 1e-12)
    allowed = tolerance * _norm(implied) + rounding
    off = _norm(_flat(velocity) - implied)
    worst = int(np.argmax(off / np.maximum(allowed, 1e-300)))
    if not off[worst] <= allowed[worst]:
        raise RunMismatchError(
            f"this model does not reproduce image {samples.image_index[samples.image[rows[worst]]]} step "
            f"{samples.step_index[rows[worst]]}: its velocity is off by "
            f"{off[worst] / max(_norm(implied)[worst], 1e-300):.1%}, "
            f"{allowed[worst] / max(_norm(implied)[worst], 1e-300):.1%} is rounding; "
            "measure with the model and cfg_weight that made the samples, or calibrate again"
        )


def _flat(values: Array) -> Array:
    flat: Array = values.reshape(len(values), -1).astype(np.float64)
    return flat


def _norm(values: Array) -> Array:
    norm: Array = np.linalg.norm(values, axis=1)
    return norm
