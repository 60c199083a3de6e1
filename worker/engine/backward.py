"""Pulls cotangents back through one part of the forward pass, several at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from worker.engine.layers import get_weight, set_weight

Arrays = list[mx.array]
Function = Callable[[Arrays], Arrays]
"""Takes the inputs and uses the weights that are in place."""


def pull_back(
    transformer: Any, function: Function, inputs: Arrays, layers: Sequence[str], cotangents: Arrays
) -> tuple[Arrays, dict[str, mx.array]]:
    """Compute the gradients of a part of the model by its inputs and by the weights of its layers.

    The part is run again once, and all cotangents go back together: for a transformer block that is 1.2
    times the cost of its forward pass for each, where one by one it is 2.3 times.

    Args:
        transformer: the transformer whose layers they are.
        function: from inputs to outputs, by the modules of `transformer`.
        inputs: float32.
        layers: dotted paths.
        cotangents: one for each output, (P, *output.shape).

    Returns:
        A gradient (P, *input.shape) for each input, and (P, outputs, inputs) for each layer; lazy.
    """
    weights = [get_weight(transformer, layer).astype(mx.float32) for layer in layers]

    def run(*primals: mx.array) -> Arrays:
        with _weights(transformer, layers, primals[len(inputs) :]):
            return function(list(primals[: len(inputs)]))

    def pull(*one: mx.array) -> Arrays:
        return mx.vjp(run, [*inputs, *weights], list(one))[1]

    if len(cotangents[0]) == 1:
        gradients = [gradient[None] for gradient in pull(*(cotangent[0] for cotangent in cotangents))]
    else:
        gradients = list(mx.vmap(pull)(*cotangents))
    return gradients[: len(inputs)], dict(zip(layers, gradients[len(inputs) :], strict=True))


@contextmanager
def _weights(transformer: Any, layers: Sequence[str], weights: Sequence[mx.array]) -> Iterator[None]:
    originals = [get_weight(transformer, layer) for layer in layers]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            set_weight(transformer, layer, weight)
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            set_weight(transformer, layer, original)
