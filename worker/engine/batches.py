"""Micro-batches of a sample set, and the guided velocity."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from shared.errors import RunMismatchError
from shared.layout.npz import Array
from shared.layout.sample_set import SampleSet
from worker.engine.replay import Forward
from worker.families.family import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Which samples run together."""

    index: int
    """Number of the micro-batch; its kept state has the same."""
    rows: Array
    """(S,) integers: positions in the sample set."""


def split_samples(samples: SampleSet, micro_batch: int) -> list[Batch]:
    """Divide a sample set into micro-batches, in a random order that is the same on every machine.

    The draw lets any first few batches stand for all: a sample set itself goes image by image.
    """
    order = np.random.default_rng(0).permutation(len(samples))
    parts = np.array_split(order, -(-len(samples) // micro_batch))
    return [Batch(index=index, rows=rows) for index, rows in enumerate(parts)]


def rows_per_sample(samples: SampleSet, cfg_weight: float) -> int:
    """Return 2 with CFG (text, negative), else 1.

    Raises:
        RunMismatchError: the samples' conditioning is for the other case.
    """
    rows, found = (2 if cfg_weight > 0 else 1), samples.rows
    if found != rows:
        raise RunMismatchError(
            f"cfg_weight {cfg_weight:g} needs {rows} rows of conditioning a sample, these samples have "
            f"{found}; measure with the cfg_weight they were made with"
        )
    return rows


def batch_forward(family: Family, samples: SampleSet, batch: Batch, *, rows: int, dtype: mx.Dtype) -> Forward:
    """Return the forward pass of S samples in `dtype`, with S * `rows` rows, sample after sample.

    Conditioning that is not floating point, as positions and masks, keeps its own dtype.
    """
    image = samples.image[batch.rows]
    conditioning = {name: _array(_rows(array[image]), dtype) for name, array in samples.conditioning.items()}
    x = _array(np.repeat(samples.x[batch.rows], rows, axis=0), dtype)
    sigma = mx.array(np.repeat(samples.sigma[batch.rows], rows))
    return lambda: family.velocity(x, sigma, conditioning)


def guided_velocity(velocity: mx.array, cfg_weight: float) -> mx.array:
    """Return v_neg + cfg_weight (v_text - v_neg), (S, H, W, C) float32, from the model's output (S * rows,
    H, W, C).
    """
    velocity = velocity.astype(mx.float32)
    if cfg_weight <= 0:
        return velocity
    text, negative = velocity[0::2], velocity[1::2]
    return negative + cfg_weight * (text - negative)


def unguided_cotangent(cotangent: mx.array, cfg_weight: float) -> mx.array:
    """Return the cotangent (P, rows, H, W, C) of the model's output, given that of one sample's guided
    velocity (P, H, W, C).
    """
    if cfg_weight <= 0:
        return cotangent[:, None]
    return mx.stack([cfg_weight * cotangent, (1 - cfg_weight) * cotangent], axis=1)


def _rows(values: Array) -> Array:
    """Reshape (S, rows, ...) to (S * rows, ...)."""
    return values.reshape(-1, *values.shape[2:])


def _array(values: Array, dtype: mx.Dtype) -> mx.array:
    array = mx.array(values)
    return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array
