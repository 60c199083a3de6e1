"""dW of every layer at every bit width: what quantization adds to a weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from shared.errors import TaskRefusedError
from shared.layout.npz import Array
from worker.engine.quantize import check_measurable, fake_quantize, squared_rows
from worker.model.layers import get_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightErrors:
    """What is known of L layers at B bit widths without running the model."""

    measurable: Array
    """(L,) bool."""
    squared_error: Array
    """(L, B) float64."""
    squared_norm: Array
    """(L,) float64."""
    bits_per_weight: Array
    """(L, B) float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """Of one layer, at all bit widths."""

    squared_error: Array
    squared_norm: float
    bits_per_weight: Array


class Deltas:
    """dW = W_quantized - W in float32, kept where all of them fit in memory, else made anew each time."""

    def __init__(
        self, mmdit: Any, layers: Sequence[str], bits: Sequence[int], group_size: int, spare_bytes: int
    ) -> None:
        self._mmdit, self._layers, self._bits, self._group_size = mmdit, layers, tuple(bits), group_size
        weights = sum(get_weight(mmdit, layer).size for layer in layers)
        self._keep = 4 * weights * len(self._bits) <= spare_bytes
        self._kept: dict[str, mx.array] = {}
        self._facts: dict[str, _Facts | None] = {}

    def of(self, layer: str) -> mx.array | None:
        """(B, outputs * inputs) float32; None where the layer is not measurable."""
        if layer in self._kept:
            return self._kept[layer]
        try:
            for bits in self._bits:
                check_measurable(self._mmdit, layer, bits=bits, group_size=self._group_size)
        except TaskRefusedError:
            self._facts[layer] = None
            return None
        weight = get_weight(self._mmdit, layer)
        pairs = [fake_quantize(weight, bits=bits, group_size=self._group_size) for bits in self._bits]
        original = weight.astype(mx.float32)
        deltas = mx.stack([candidate.astype(mx.float32) - original for candidate, _ in pairs])
        if layer not in self._facts:
            error, norm = squared_rows(deltas), squared_rows(original)
            mx.eval(deltas, error, norm)
            self._facts[layer] = _Facts(
                squared_error=np.array(error, np.float64).sum(axis=1),
                squared_norm=float(np.array(norm, np.float64).sum()),
                bits_per_weight=np.array([stored for _, stored in pairs]),
            )
        flat = deltas.reshape(len(self._bits), -1)
        mx.eval(flat)
        if self._keep:
            self._kept[layer] = flat
        return flat

    def weight_errors(self) -> WeightErrors:
        """Of all layers, in their order; every layer must have been asked for."""
        nothing = np.zeros(len(self._bits))
        unknown = _Facts(squared_error=nothing, squared_norm=0.0, bits_per_weight=nothing)
        facts = [self._facts[layer] for layer in self._layers]
        return WeightErrors(
            measurable=np.array([fact is not None for fact in facts]),
            squared_error=np.stack([(fact or unknown).squared_error for fact in facts]),
            squared_norm=np.array([(fact or unknown).squared_norm for fact in facts]),
            bits_per_weight=np.stack([(fact or unknown).bits_per_weight for fact in facts]),
        )
