"""Attention by groups of heads is MLX's own, forward and back."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from worker.engine.attention import few_heads_at_a_time

MLXS = (mx.fast.scaled_dot_product_attention,)
"""In a tuple: a name of a module would be replaced, too."""


class Module(nn.Module):
    """As DiffusionKit's blocks: the function is an attribute, since the module was made."""

    def __init__(self) -> None:
        super().__init__()
        self.sdpa = partial(MLXS[0], scale=np.float64(0.4))

    def __call__(self, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        attended: mx.array = self.sdpa(q, k, v)
        return attended


def draw(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("heads_together", [1, 2, 5])
def test_gradients_are_mlxs_own_whatever_the_groups(heads_together: int) -> None:
    shape = (2, 5, 11, 8)
    arrays = [draw(*shape), draw(1, *shape)[0] * 0.7, mx.sin(draw(*shape))]
    cotangent, module = mx.cos(draw(*shape)), Module()

    def pull() -> list[mx.array]:
        outputs, gradients = mx.vjp(lambda *inputs: [module(*inputs)], arrays, [cotangent])
        return [*outputs, *gradients]

    expected = pull()
    with few_heads_at_a_time(module, heads_together):
        assert module.sdpa.func is not MLXS[0]
        found = pull()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=1e-5, atol=1e-6)


def test_all_is_as_before_afterwards_and_masks_go_the_old_way() -> None:
    module = Module()
    before = module.sdpa
    q = draw(1, 2, 4, 8)
    with pytest.raises(KeyboardInterrupt), few_heads_at_a_time(module, 1):
        assert mx.fast.scaled_dot_product_attention is not MLXS[0]
        masked = mx.fast.scaled_dot_product_attention(q, q, q, scale=1.0, mask="causal")
        assert np.array_equal(np.array(masked), np.array(MLXS[0](q, q, q, scale=1.0, mask="causal")))
        raise KeyboardInterrupt
    assert mx.fast.scaled_dot_product_attention is MLXS[0]
    assert module.sdpa is before


def test_it_takes_less_memory_than_all_heads_at_once() -> None:
    heads, tokens = 16, 256
    q, module = draw(1, heads, tokens, 8), Module()
    scores = 4 * heads * tokens**2

    def peak() -> int:
        mx.clear_cache()
        mx.eval(q)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(mx.vjp(lambda q: [module(q, q, q)], [q], [q])[1])
        return mx.get_peak_memory() - before

    whole = peak()
    with few_heads_at_a_time(module, 1):
        assert peak() < min(whole / 4, scores)
