"""The noise floor: what a score says when the weight has changed by next to nothing.

An unchanged weight gives back the same output to the last bit, and proves nothing. A weight whose last bit
changed makes every rounding behind it fall anew, as every candidate does. So the floor is the same
measurement with each number of a layer's weight moved to its neighbour, in the dtype in which it is
multiplied. In the model's own precision that is the last bit as shipped, and what rounding makes of it is far
larger than the change. In float32 it is a change of 1e-7, and the floor is float32's rounding and nothing
else. The last bit of bfloat16 would be no floor there: it changes a weight as much as 8 bits do, and float32
measures that well.
"""

from collections.abc import Sequence

import mlx.core as mx

from worker.engine.steps import Step, start_of

PARTS = 6
"""The floor is measured at the start of each sixth of the model: the more blocks follow, the higher it is."""

_INTEGER = {2: mx.uint16, 4: mx.uint32}
_LARGEST = {mx.float16: 0x7BFF, mx.bfloat16: 0x7F7F, mx.float32: 0x7F7FFFFF}


def change_last_bit(weight: mx.array) -> mx.array:
    """Each number moved to the next one that its dtype knows, away from zero or towards it, as a seed draws.

    Zeros move away from it, the largest numbers towards it.
    """
    bits = weight.view(_INTEGER[weight.dtype.size])
    magnitude = bits & (2 ** (8 * weight.dtype.size - 1) - 1)
    away = mx.random.bernoulli(0.5, weight.shape, key=mx.random.key(0)) | (magnitude == 0)
    moved = mx.where(away & (magnitude < _LARGEST[weight.dtype]), bits + 1, bits - 1)
    return moved.astype(bits.dtype).view(weight.dtype)


def part_of(start: int, steps: int) -> int:
    """Which part of the model a candidate that starts at this step lies in."""
    return start * PARTS // steps


def floor_layers(steps: Sequence[Step], layers: Sequence[str], part: int) -> list[str]:
    """The layers whose last bit may tell the floor of a part, the best first.

    The first step of the part comes first, so that a sweep need not go back; of a step, values and MLPs
    before queries and keys, on which attention may hardly depend. The next serve where the first are dead.
    """
    starts = {layer: start_of(steps, layer) for layer in layers}
    within = [layer for layer in layers if part_of(starts[layer], len(steps)) >= part]
    # An end without layers of its own is told by the last layers there are.
    return sorted(within or layers[-1:], key=lambda layer: (starts[layer], _rank(layer)))


def _rank(layer: str) -> int:
    preferred = ("context_embedder", "attn.v_proj", "mlp.fc1", "attn.o_proj", "linear")
    return next((rank for rank, end in enumerate(preferred) if layer.endswith(end)), len(preferred))
