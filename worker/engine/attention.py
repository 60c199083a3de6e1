"""Attention whose gradient holds the scores of a few heads, and not of all.

MLX differentiates its attention by way of the scores: about five arrays of R H T^2 float32 values, 17 GB for
SD3 at 1024 pixels. Heads are independent, so here they go one group after the other, each from the queries
and keys again.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import mlx.core as mx

Attention = Callable[..., mx.array]


@contextmanager
def few_heads_at_a_time(transformer: Any, heads_at_once: int) -> Iterator[None]:
    """Within this context attention without a mask goes back by groups of heads.

    It is replaced wherever a model could have it from: `mx.fast`, a name in an imported module, or an
    attribute of one of the transformer's modules, alone or in a `functools.partial`.

    Args:
        transformer: whose modules may hold the function.
        heads_at_once: how many go back together; their scores take memory.
    """
    original: Attention = mx.fast.scaled_dot_product_attention
    ours = partial(_attend, original, heads_at_once)
    places = [(namespace, name, namespace[name]) for namespace, name in _places(transformer, original)]
    try:
        for namespace, name, value in places:
            namespace[name] = partial(ours, *value.args, **value.keywords) if value is not original else ours
        mx.fast.scaled_dot_product_attention = ours
        yield
    finally:
        mx.fast.scaled_dot_product_attention = original
        for namespace, name, value in places:
            namespace[name] = value


def _places(transformer: Any, original: Attention) -> Iterator[tuple[dict[str, Any], str]]:
    """Namespaces, and the names in them that stand for the function."""
    modules = [vars(module) for module in transformer.modules()]
    imported = [vars(module) for module in list(sys.modules.values()) if hasattr(module, "__dict__")]
    for namespace in [*modules, *imported]:
        for name, value in list(namespace.items()):
            if value is original or (type(value) is partial and value.func is original):
                yield namespace, name


def _attend(
    original: Attention,
    heads_at_once: int,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: Any = None,
    **options: Any,
) -> mx.array:
    """As `mx.fast.scaled_dot_product_attention`, of (R, H, T, D)."""
    if mask is not None or any(value is not None for value in options.values()) or k.shape[1] != q.shape[1]:
        return original(q, k, v, scale=scale, mask=mask, **options)
    # numpy's number would take the products to numpy.
    scale = float(scale)
    groups = [slice(start, start + heads_at_once) for start in range(0, q.shape[1], heads_at_once)]

    @mx.custom_function
    def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        if mx.metal.is_available():
            # Metal's own never holds the scores.
            return original(q, k, v, scale=scale)
        outputs: list[mx.array] = []
        for group in groups:
            some = _after([q[:, group], k[:, group], v[:, group]], outputs[-1:])
            outputs.append(original(*some, scale=scale))
        return mx.concatenate(outputs, axis=1)

    @attention.vjp
    def _pull_back(primals: list[mx.array], cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
        pulled: list[list[mx.array]] = []
        for group in groups:
            some = [array[:, group] for array in (*primals, cotangent, output)]
            # Evaluated here, all that came before would be held until the end: ten times the memory.
            pulled.append(_pull_back_heads(_after(some, pulled[-1] if pulled else []), scale))
        return tuple(mx.concatenate(list(parts), axis=1) for parts in zip(*pulled, strict=True))

    return cast(mx.array, attention(q, k, v))


def _pull_back_heads(arrays: list[mx.array], scale: float) -> list[mx.array]:
    """Gradients by q, k and v of some heads, of q, k, v, cotangent and output.

    The sum over keys comes from the output, as in FlashAttention (Dao et al. 2022).
    """
    q, k, v, cotangent, output = arrays
    probabilities = mx.softmax((scale * q) @ k.swapaxes(-1, -2), axis=-1)
    by_v = probabilities.swapaxes(-1, -2) @ cotangent
    by_probabilities = cotangent @ v.swapaxes(-1, -2)
    by_scores = probabilities * (by_probabilities - (cotangent * output).sum(axis=-1, keepdims=True))
    return [scale * (by_scores @ k), scale * (by_scores.swapaxes(-1, -2) @ q), by_v]


def _after(arrays: list[mx.array], earlier: list[mx.array]) -> list[mx.array]:
    """The same arrays, but MLX computes nothing of them before `earlier` is there."""
    return list(mx.depends(arrays, earlier)) if earlier else arrays
