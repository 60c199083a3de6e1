"""The noise floor: what a score says when the weight has changed by next to nothing.

An unchanged weight gives back the same output to the last bit, and proves nothing. A weight whose last bit
changed makes every rounding behind it fall anew, as every candidate does. So the floor is the same
measurement with each number of a layer's weight moved to its neighbour, in the dtype in which it is
multiplied. In the model's own precision that is the last bit as shipped, and what rounding makes of it is far
larger than the change. In float32 it is a change of 1e-7, and the floor is float32's rounding and nothing
else. The last bit of bfloat16 would be no floor there: it changes a weight as much as 8 bits do, and float32
measures that well.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx

from shared.layer_place import LayerPlace
from worker.engine.replay import Replay

PARTS = 6
"""The floor is measured at the start of each sixth of the model: the more blocks follow, the higher it is."""

_PREFERRED = ("v", "fc1", "o")
"""Roles of layers on which the output always depends."""

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


def part_of(replay: Replay, position: int) -> int:
    """Which part of the model a candidate that enters here lies in; embedders lie in the first."""
    first = replay.first_block
    return max(0, position - first) * PARTS // (len(replay) - first + 1)


def floor_layers(
    replay: Replay, layers: Sequence[str], place: Callable[[str], LayerPlace], part: int
) -> list[str]:
    """The layers whose last bit may tell the floor of a part, the best first.

    The first block of the part comes first, so that a sweep need not go back; of a block, values and MLPs
    before queries and keys, on which attention may hardly depend. The next serve where the first are dead.
    """
    within = [layer for layer in layers if part_of(replay, replay.entry_of(layer)) >= part]
    # An end without layers of its own is told by the last layers there are.
    return sorted(within or layers[-1:], key=lambda layer: (replay.entry_of(layer), _rank(place(layer))))


def _rank(place: LayerPlace) -> int:
    return _PREFERRED.index(place.role) if place.role in _PREFERRED else len(_PREFERRED)
