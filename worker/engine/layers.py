"""The weights of a transformer's linear layers, by dotted MLX path.

A linear layer is an `nn.Linear`, or a patch embedding: a convolution whose stride is its kernel is a linear
layer over patches. Its weight is read here as (outputs, inputs), inputs in the order row, column, channel of
a patch.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from shared.errors import TaskRefusedError


def is_linear(module: Any) -> bool:
    """Return whether a module is a linear layer. A convolution is one if it reads each pixel exactly once."""
    over_patches = isinstance(module, nn.Conv2d) and tuple(module.stride) == tuple(module.weight.shape[1:3])
    return isinstance(module, nn.Linear) or over_patches


def get_weight(transformer: Any, layer: str) -> mx.array:
    """Return the weight (outputs, inputs) of a layer.

    Raises:
        TaskRefusedError: the model has no such layer.
    """
    module = find_linear(transformer, layer)
    weight: mx.array = module.weight.reshape(shape_of(module))
    return weight


def set_weight(transformer: Any, layer: str, weight: mx.array) -> None:
    """Replace the weight (outputs, inputs) of a layer.

    Raises:
        TaskRefusedError: the model has no such layer.
    """
    module = find_linear(transformer, layer)
    module.weight = weight.reshape(module.weight.shape)


def find_linear(transformer: Any, layer: str) -> nn.Linear | nn.Conv2d:
    """Return the layer at a dotted path.

    Raises:
        TaskRefusedError: the model has no such layer.
    """
    node: Any = transformer
    for name in layer.split("."):
        try:
            node = node[int(name)] if isinstance(node, list) else getattr(node, name)
        except (AttributeError, IndexError, ValueError):
            raise TaskRefusedError(f"this model has no layer {layer!r}") from None
    if not is_linear(node):
        raise TaskRefusedError(f"{layer!r} of this model is no linear layer")
    module: nn.Linear | nn.Conv2d = node
    return module


def shape_of(module: nn.Linear | nn.Conv2d) -> tuple[int, int]:
    """Return (outputs, inputs)."""
    outputs: int = module.weight.shape[0]
    return outputs, module.weight.size // outputs
