"""Candidates as they would be stored: packed, with scales and biases; eight times smaller than their dW."""

from typing import Any

import mlx.core as mx

from shared.model_card import LayerInfo
from shared.plan import Choice
from worker.engine.layers import find_linear, get_weight, shape_of

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
        self._kept: dict[tuple[str, Choice], Packed] = {}

    def difference(self, layer: str, choice: Choice) -> mx.array:
        """dW = W_quantized - W (outputs, inputs) float32, lazy, with W_quantized in the dtype of W."""
        weight = get_weight(self._transformer, layer)
        codes, scales, biases = self._packed(layer, choice, weight)
        candidate = mx.dequantize(codes, scales, biases, group_size=choice.group_size, bits=choice.bits)
        return candidate.astype(weight.dtype).astype(mx.float32) - weight.astype(mx.float32)

    def _packed(self, layer: str, choice: Choice, weight: mx.array) -> Packed:
        if (layer, choice) in self._kept:
            return self._kept[layer, choice]
        packed = mx.quantize(weight, group_size=choice.group_size, bits=choice.bits)
        if self._keep:
            mx.eval(packed)
            self._kept[layer, choice] = packed
        return packed
