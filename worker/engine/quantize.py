"""A candidate: the weight that a layer would have after MLX's affine quantization."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from shared.choices import BITS, GROUP_SIZES
from shared.errors import TaskRefusedError
from shared.model_card import LayerInfo
from shared.plan import SCALE_BYTES
from worker.engine.layers import get_weight, set_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """`dequantize(quantize(W, group_size, bits))` of one layer, and what it costs."""

    weight: mx.array
    """(outputs, inputs), in the dtype of W."""
    squared_error: float
    """||weight - W||^2."""
    squared_norm: float
    """||W||^2."""
    bits_per_weight: float
    """Bits, plus a scale and a bias of 16 bits a group: see `fake_quantize`."""


def quantize_layer(transformer: Any, layer: str, *, bits: int, group_size: int) -> Candidate:
    """Quantize one layer's weight and dequantize it again, in the weight's own dtype.

    Raises:
        TaskRefusedError: no such layer, bits or group size, or its inputs do not fill whole groups.
    """
    weight = get_weight(transformer, layer)
    check_measurable(transformer, layer, bits=bits, group_size=group_size)
    candidate, bits_per_weight = fake_quantize(weight, bits=bits, group_size=group_size)
    original = weight.astype(mx.float32)
    error, norm = squared_rows(candidate.astype(mx.float32) - original), squared_rows(original)
    mx.eval(candidate, error, norm)
    return Candidate(
        weight=candidate,
        squared_error=float(np.array(error, np.float64).sum()),
        squared_norm=float(np.array(norm, np.float64).sum()),
        bits_per_weight=bits_per_weight,
    )


def fake_quantize(weight: mx.array, *, bits: int, group_size: int) -> tuple[mx.array, float]:
    """Return `dequantize(quantize(W))` in the dtype of W, lazy, and the bits stored per weight.

    Scales and biases have the dtype of W, but count as float16 or bfloat16: what a quantized model is shipped
    in, whatever precision it was measured in.
    """
    packed, scales, biases = mx.quantize(weight, group_size=group_size, bits=bits)
    candidate = mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits)
    stored = packed.nbytes + SCALE_BYTES * (scales.size + biases.size)
    return candidate.astype(weight.dtype), 8 * stored / weight.size


def squared_rows(values: mx.array) -> mx.array:
    """Return sums of squares over the last axis in float32. Sum them further in float64."""
    # `values**2` would call pow: ten times slower on a CPU.
    return mx.square(values).sum(axis=-1)


def check_measurable(transformer: Any, layer: str, *, bits: int, group_size: int) -> None:
    """Check that MLX can quantize this layer.

    Raises:
        TaskRefusedError: no such layer, bits or group size, or its inputs do not fill whole groups.
    """
    if bits not in BITS:
        raise TaskRefusedError(f"MLX can't quantize to {bits} bits; choose of {BITS}")
    if group_size not in GROUP_SIZES:
        raise TaskRefusedError(f"MLX has no group size {group_size}; choose of {GROUP_SIZES}")
    outputs, inputs = get_weight(transformer, layer).shape
    if reason := LayerInfo(path=layer, shape=(outputs, inputs)).unmeasurable(group_size):
        raise TaskRefusedError(f"not measurable: {reason}")


@contextmanager
def swapped(transformer: Any, layer: str, weight: mx.array) -> Iterator[None]:
    """Give the layer another weight within this context. Its own is put back, also after an error."""
    original = get_weight(transformer, layer)
    set_weight(transformer, layer, weight)
    try:
        yield
    finally:
        set_weight(transformer, layer, original)
