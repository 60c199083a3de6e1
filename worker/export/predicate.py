"""Which modules `mlx.nn.quantize` shall quantize, and how."""

from collections.abc import Callable, Mapping
from typing import Any

from shared.plan import Choice

Predicate = Callable[[str, Any], bool | dict[str, Any]]
"""From path and module to the parameters of `to_quantized`, or False."""


def predicate_of(layers: Mapping[str, Choice]) -> Predicate:
    """Return a `class_predicate` that quantizes these layers, and no others.

    A patch embedding that is a convolution keeps its weight: MLX has no quantized module for it.
    """

    def predicate(path: str, module: Any) -> bool | dict[str, Any]:
        choice = layers.get(path)
        if choice is None or not hasattr(module, "to_quantized"):
            return False
        return {"group_size": choice.group_size, "bits": choice.bits}

    return predicate
