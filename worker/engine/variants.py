"""A variant: the transformer with nn.QuantizedLinear in place of some of its layers, for a while."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from shared.plan import Choice, Variant
from worker.engine.layers import find_linear, get_weight
from worker.engine.quantize import check_measurable, fake_quantize, swapped


@contextmanager
def as_variant(transformer: Any, variant: Variant) -> Iterator[None]:
    """Within this context the transformer is the variant; its own layers come back whatever happens.

    Weights are quantized from the stored ones, and scales have the dtype of the weights. Layers that the
    variant does not name stay as they are. A patch embedding that is a convolution, for which MLX has no
    quantized module, gets the same numbers as a weight of its own dtype.

    Raises:
        TaskRefusedError: no such layer, or MLX can't quantize it like this.
    """
    for layer, choice in variant.layers.items():
        check_measurable(transformer, layer, bits=choice.bits, group_size=choice.group_size)
    with ExitStack() as stack:
        for layer, choice in variant.layers.items():
            stack.enter_context(_quantized(transformer, layer, choice))
        yield


def _quantized(transformer: Any, layer: str, choice: Choice) -> AbstractContextManager[None]:
    original = find_linear(transformer, layer)
    if isinstance(original, nn.Linear):
        module = nn.QuantizedLinear.from_linear(original, choice.group_size, choice.bits)
        # Layer by layer: the graph of all would hold what quantizing needs in between.
        mx.eval(module.parameters())
        return _replaced(transformer, layer, module)
    weight, _ = fake_quantize(get_weight(transformer, layer), bits=choice.bits, group_size=choice.group_size)
    mx.eval(weight)
    return swapped(transformer, layer, weight)


@contextmanager
def _replaced(transformer: Any, layer: str, module: nn.Module) -> Iterator[None]:
    path, _, name = layer.rpartition(".")
    parent = transformer
    for step in path.split(".") if path else []:
        parent = parent[int(step)] if isinstance(parent, list) else getattr(parent, step)
    original = parent[int(name)] if isinstance(parent, list) else getattr(parent, name)
    _put(parent, name, module)
    try:
        yield
    finally:
        _put(parent, name, original)


def _put(parent: Any, name: str, module: nn.Module) -> None:
    if isinstance(parent, list):
        parent[int(name)] = module
    else:
        setattr(parent, name, module)
