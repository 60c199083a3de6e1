"""dW: the difference that quantization makes to each layer's weight, at each bit width."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from shared.errors import TaskRefusedError
from shared.layout.npz import Array
from worker.engine.layers import get_weight
from worker.engine.quantize import check_measurable, fake_quantize, squared_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightErrors:
    """Quantization errors of L layers at B bit widths."""

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
    """Quantization error of one layer at one bit width."""

    squared_error: float
    squared_norm: float
    bits_per_weight: float


class Deltas:
    """dW = W_quantized - W in float32, one layer and bit width at a time."""

    def __init__(self, transformer: Any, layers: Sequence[str], bits: Sequence[int], group_size: int) -> None:
        self._transformer, self._layers, self._bits, self._group_size = (
            transformer,
            layers,
            tuple(bits),
            group_size,
        )
        self._keep = False
        self._kept: dict[tuple[str, int], mx.array] = {}
        self._facts: dict[tuple[str, int], _Facts] = {}

    def keep(self, keep: bool) -> None:
        """Set whether dW are kept once they are made, or made again each time."""
        self._keep = keep
        if not keep:
            self._kept.clear()

    def is_measurable(self, layer: str) -> bool:
        """Return whether MLX can quantize this layer to all of the bit widths."""
        try:
            for bits in self._bits:
                check_measurable(self._transformer, layer, bits=bits, group_size=self._group_size)
        except TaskRefusedError:
            return False
        return True

    def of(self, layer: str, bits: int) -> mx.array:
        """Return dW, flat (outputs * inputs,) float32 and evaluated. The layer must be measurable."""
        if (layer, bits) in self._kept:
            return self._kept[layer, bits]
        weight = get_weight(self._transformer, layer)
        candidate, stored = fake_quantize(weight, bits=bits, group_size=self._group_size)
        original = weight.astype(mx.float32)
        delta = candidate.astype(mx.float32) - original
        mx.eval(delta)
        if (layer, bits) not in self._facts:
            error, norm = squared_rows(delta), squared_rows(original)
            self._facts[layer, bits] = _Facts(
                squared_error=float(np.array(error, np.float64).sum()),
                squared_norm=float(np.array(norm, np.float64).sum()),
                bits_per_weight=stored,
            )
        delta = delta.reshape(-1)
        if self._keep:
            self._kept[layer, bits] = delta
        return delta

    def weight_errors(self) -> WeightErrors:
        """Return the errors of all layers, in their order. Each layer must have been asked for before."""
        measurable = np.array([self.is_measurable(layer) for layer in self._layers])
        nothing = _Facts(squared_error=0.0, squared_norm=0.0, bits_per_weight=0.0)

        def table(field: str) -> Array:
            return np.array(
                [
                    [getattr(self._facts.get((layer, bits), nothing), field) for bits in self._bits]
                    for layer in self._layers
                ]
            )

        return WeightErrors(
            measurable=measurable,
            squared_error=table("squared_error"),
            squared_norm=table("squared_norm")[:, 0],
            bits_per_weight=table("bits_per_weight"),
        )
