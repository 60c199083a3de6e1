"""Candidates as they would be stored: packed, with scales and biases; eight times smaller than their dW."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from shared.model_card import LayerInfo
from shared.plan import Choice
from worker.engine.layers import find_linear, get_weight, shape_of
from worker.engine.row_slices import row_slices

Packed = tuple[mx.array, mx.array, mx.array]
"""Codes, scales and biases."""


def is_measurable(transformer: Any, layer: str, choice: Choice) -> bool:
    """Whether MLX can quantize this layer so."""
    shape = shape_of(find_linear(transformer, layer))
    return LayerInfo(path=layer, shape=shape).unmeasurable(choice.group_size) is None


class PackedCandidates:
    """Packs a layer's weight, once if there is memory to keep it, and gives dW."""

    def __init__(self, transformer: Any, *, keep: bool) -> None:
        self._transformer, self._keep = transformer, keep
        self._kept: dict[tuple[str, Choice, int], Packed] = {}

    def differences(self, layer: str, choice: Choice) -> Iterator[tuple[slice, mx.array]]:
        """dW = W_quantized - W, float32 and lazy, some rows at a time; W_quantized has the dtype of W."""
        weight = get_weight(self._transformer, layer)
        outputs, inputs = weight.shape
        for rows in row_slices((outputs, inputs)):
            original = weight[rows]
            codes, scales, biases = self._packed(layer, choice, rows, original)
            candidate = mx.dequantize(codes, scales, biases, group_size=choice.group_size, bits=choice.bits)
            yield rows, candidate.astype(weight.dtype).astype(mx.float32) - original.astype(mx.float32)

    def difference(self, layer: str, choice: Choice) -> mx.array:
        """dW as a whole (outputs, inputs)."""
        return mx.concatenate([part for _, part in self.differences(layer, choice)])

    def _packed(self, layer: str, choice: Choice, rows: slice, weight: mx.array) -> Packed:
        key = (layer, choice, rows.start)
        if key in self._kept:
            return self._kept[key]
        packed = mx.quantize(weight, group_size=choice.group_size, bits=choice.bits)
        if self._keep:
            mx.eval(packed)
            self._kept[key] = packed
        return packed
