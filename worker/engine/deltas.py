"""dW of every layer at every bit width: what quantization adds to a weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from shared.errors import TaskRefusedError
from shared.npz import Array
from worker.engine.quantize import Candidate, quantize_layer
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


class Deltas:
    """dW = W_quantized - W in float32, kept where all of them fit in memory, else made anew each time."""

    def __init__(
        self, mmdit: Any, layers: Sequence[str], bits: Sequence[int], group_size: int, spare_bytes: int
    ) -> None:
        self._mmdit, self._layers, self._bits, self._group_size = mmdit, layers, tuple(bits), group_size
        weights = sum(get_weight(mmdit, layer).size for layer in layers)
        self._keep = 4 * weights * len(self._bits) <= spare_bytes
        self._kept: dict[str, mx.array] = {}
        self._facts: dict[str, list[Candidate] | None] = {}

    def of(self, layer: str) -> mx.array | None:
        """(B, outputs * inputs) float32; None where the layer is not measurable."""
        if layer in self._kept:
            return self._kept[layer]
        try:
            candidates = [
                quantize_layer(self._mmdit, layer, bits=bits, group_size=self._group_size)
                for bits in self._bits
            ]
        except TaskRefusedError:
            self._facts[layer] = None
            return None
        weight = get_weight(self._mmdit, layer).astype(mx.float32)
        deltas = mx.stack([(one.weight.astype(mx.float32) - weight).flatten() for one in candidates])
        mx.eval(deltas)
        self._facts[layer] = [one.without_weight() for one in candidates]
        if self._keep:
            self._kept[layer] = deltas
        return deltas

    def weight_errors(self) -> WeightErrors:
        """Of all layers, in their order; every layer must have been asked for."""
        facts = [self._facts[layer] for layer in self._layers]
        empty = [Candidate(weight=mx.array(0.0), squared_error=0, squared_norm=0, bits_per_weight=0)]
        rows = [fact or empty * len(self._bits) for fact in facts]
        return WeightErrors(
            measurable=np.array([fact is not None for fact in facts]),
            squared_error=np.array([[one.squared_error for one in row] for row in rows], np.float64),
            squared_norm=np.array([row[0].squared_norm for row in rows], np.float64),
            bits_per_weight=np.array([[one.bits_per_weight for one in row] for row in rows], np.float64),
        )
