"""How much memory one sample's forward pass takes, measured on a real one."""

import gc
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from worker.engine.layers import get_weight
from worker.engine.noise import change_last_bit
from worker.engine.quantize import swapped
from worker.engine.replay import START, Forward, Replay, State
from worker.families.family import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class PassMemory:
    """What a pass of one sample takes, beside the weights."""

    working: int
    """Bytes in use at the same time, with a changed weight of the largest layer in place."""
    state: int
    """Bytes of the largest state that is kept between two blocks."""
    tokens: int
    """Of all rows, image and text together."""


def bytes_taken(compute: Callable[[], object]) -> int:
    """Return the bytes that were in use at the same time while `compute` ran, beyond those in use before it.

    Resets MLX's peak.
    """
    gc.collect()
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    compute()
    mx.synchronize()
    return max(0, mx.get_peak_memory() - before)


def measure_pass(family: Family, replay: Replay, forward: Forward, dtype: mx.Dtype) -> PassMemory:
    """Run one pass, after reading all weights.

    Args:
        family: the loaded model.
        replay: of that model.
        forward: the pass of one sample.
        dtype: in which a changed weight is multiplied.
    """
    transformer = family.transformer
    mx.eval(transformer.parameters())
    layer = largest_layer(family)

    def run() -> None:
        changed = change_last_bit(get_weight(transformer, layer).astype(dtype))
        with swapped(transformer, layer, changed):
            mx.eval(replay.run_from(forward, START))

    working = bytes_taken(run)
    states = replay.states(forward)
    return PassMemory(
        working=working,
        state=max(map(state_bytes, states)),
        tokens=max(map(_tokens, states)),
    )


def largest_layer(family: Family) -> str:
    """Dotted path of the layer that has most weights."""
    return max(family.layers, key=lambda layer: layer.shape[0] * layer.shape[1]).path


def state_bytes(state: State) -> int:
    """Bytes of the arrays of a state, evaluated or not."""
    return sum(array.nbytes for array in state.arrays)


def _tokens(state: State) -> int:
    """Rows of channels in a state; arrays without an axis of tokens, as modulation, do not count."""
    return sum(array.size // array.shape[-1] for array in state.arrays if array.ndim > 2)
