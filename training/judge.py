"""Says what a picture shows, by colour and by template: things, their shapes, their places."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy import ndimage

from training.grammar import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing
from training.render import RGB, Array, coverage

SMALLEST_AREA = 40
"""Pixels. The smallest thing of the grammar covers about 130; edges where colours mix cover fewer."""
_RADII = np.arange(5.0, 16.5, 0.5)


@dataclass(frozen=True, slots=True)
class Found:
    """One patch of one colour."""

    colour: str
    shape: str
    x: float
    y: float
    area: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is right in one picture: a value for each thing of the scene, and one for the arrangement."""

    colours: tuple[bool, ...]
    shapes: tuple[bool, ...]
    side: bool
    surplus: int
    """Things in the picture that the scene doesn't have."""


def find_things(picture: Array) -> list[Found]:
    """Patches of one colour in a (64, 64, 3) picture in [0, 1], the largest first."""
    names = [*COLOURS, *BACKGROUNDS]
    palette = np.float32([RGB[name] for name in names])
    nearest = np.argmin(((picture[:, :, None, :] - palette) ** 2).sum(-1), axis=-1)
    found = []
    for index, colour in enumerate(COLOURS):
        labels, count = ndimage.label(nearest == index)
        for label in range(1, count + 1):
            mask = labels == label
            if mask.sum() >= SMALLEST_AREA:
                y, x = ndimage.center_of_mass(mask)
                found.append(Found(colour, best_shape(mask), x + 0.5, y + 0.5, int(mask.sum())))
    return sorted(found, key=lambda thing: -thing.area)


def best_shape(mask: Array) -> str:
    """The shape whose template, at its best size and place, overlaps most (intersection over union)."""
    rows, columns = np.nonzero(mask)
    x, y = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
    scores = {
        shape: max(
            _overlap(mask, coverage(shape, x + dx, y + dy, radius) > 0.5)
            for radius in _RADII
            for dx in (-1, 0, 1)
            for dy in (-1, 0, 1)
        )
        for shape in SHAPES
    }
    return max(scores, key=scores.__getitem__)


def _overlap(first: Array, second: Array) -> float:
    return float((first & second).sum() / max(1, (first | second).sum()))


def judge(picture: Array, scene: Scene) -> Verdict:
    """Compare a (64, 64, 3) picture in [0, 1] with the scene that its prompt describes."""
    found = find_things(picture)
    count = len(scene.things)
    best: list[Found | None] = max(_assignments(found, count), key=lambda chosen: _matches(chosen, scene))
    colours = tuple(f is not None and f.colour == t.colour for f, t in zip(best, scene.things, strict=True))
    shapes = tuple(f is not None and f.shape == t.shape for f, t in zip(best, scene.things, strict=True))
    whole = [thing for thing in best if thing is not None]
    side = len(whole) == count and _arranged(whole, scene)
    return Verdict(colours, shapes, side, max(0, len(found) - count))


def _assignments(found: list[Found], count: int) -> Iterator[list[Found | None]]:
    """Ways to pair the largest patches with the scene's things; None where one is missing."""
    largest: list[Found | None] = [*found[:count]]
    largest += [None] * (count - len(largest))
    return (list(order) for order in permutations(largest))


def _matches(chosen: list[Found | None], scene: Scene) -> tuple[int, int]:
    pairs = [(f, t) for f, t in zip(chosen, scene.things, strict=True) if f is not None]
    return sum(f.colour == t.colour for f, t in pairs), sum(_same_shape(f, t) for f, t in pairs)


def _same_shape(found: Found, thing: Thing) -> bool:
    return found.shape == thing.shape


def _arranged(things: list[Found], scene: Scene) -> bool:
    if len(things) == 1:
        return _place(things[0].x / 64, things[0].y / 64) == scene.where
    dx, dy = things[1].x - things[0].x, things[1].y - things[0].y
    if abs(dx) > abs(dy):
        return scene.where == ("left" if dx > 0 else "right")
    return scene.where == ("above" if dy > 0 else "below")


def _place(x: float, y: float) -> str:
    """The nearest of the five places, from coordinates in [0, 1]."""
    if max(abs(x - 0.5), abs(y - 0.5)) < 0.12:
        return "middle"
    if abs(x - 0.5) > abs(y - 0.5):
        return "left" if x < 0.5 else "right"
    return "top" if y < 0.5 else "bottom"
