"""The noise floor: the score of a weight that has hardly changed.

An unchanged weight gives the same output to the last bit, which says nothing about rounding. Any change of a
weight, however small, changes the rounding of all that is computed after it, and every candidate is such a
change. So the floor is the same measurement with each number of a layer's weight replaced by its neighbour,
in the dtype in which the weight is multiplied.

In the model's own precision that is the last bit as shipped, and the effect of rounding is far larger than
the change itself. In float32 it is a change of 1e-7, and the floor is the rounding of float32 alone. The last
bit of bfloat16 would be no floor in float32: it changes a weight as much as 8 bits do, and float32 measures
that well.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx

from shared.layer_place import LayerPlace
from worker.engine.replay import Replay

PARTS = 6
"""The floor is measured at the start of each sixth of the model: the more blocks follow, the higher it is."""

_PREFERRED = ("v", "fc1", "o")
"""Roles of layers that always influence the output."""

_INTEGER = {2: mx.uint16, 4: mx.uint32}
_LARGEST = {mx.float16: 0x7BFF, mx.bfloat16: 0x7F7F, mx.float32: 0x7F7FFFFF}


def change_last_bit(weight: mx.array) -> mx.array:
    """Move each number to one of its two neighbours in its dtype; a seeded draw decides which.

    Zeros move away from it, the largest numbers towards it.
    """
    bits = weight.view(_INTEGER[weight.dtype.size])
    magnitude = bits & (2 ** (8 * weight.dtype.size - 1) - 1)
    away = mx.random.bernoulli(0.5, weight.shape, key=mx.random.key(0)) | (magnitude == 0)
    moved = mx.where(away & (magnitude < _LARGEST[weight.dtype]), bits + 1, bits - 1)
    return moved.astype(bits.dtype).view(weight.dtype)


def part_of(replay: Replay, position: int) -> int:
    """Return the part of the model in which a candidate at this position lies. Embedders lie in the first
    part.
    """
    first = replay.first_block
    return max(0, position - first) * PARTS // (len(replay) - first + 1)


def floor_layers(
    replay: Replay, layers: Sequence[str], place: Callable[[str], LayerPlace], part: int
) -> list[str]:
    """Return the layers that can give the noise floor of a part, the best first.

    Layers of the part's first block come first, so that the kept state need not go back. Within a block,
    values and MLPs come before queries and keys, on which attention may hardly depend. A later layer serves
    if those before it are dead.
    """
    within = [layer for layer in layers if part_of(replay, replay.entry_of(layer)) >= part]
    # After the last layers there is nothing left: then the last layers serve.
    return sorted(within or layers[-1:], key=lambda layer: (replay.entry_of(layer), _rank(place(layer))))


def _rank(place: LayerPlace) -> int:
    return _PREFERRED.index(place.role) if place.role in _PREFERRED else len(_PREFERRED)
