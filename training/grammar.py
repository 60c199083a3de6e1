"""What the demo model draws, as scenes and as the prompts that describe them.

One or two objects (size, colour, shape) on a plain background. A single object stands in one of five
places; of two, one is left of, right of, above or below the other. Two objects never share a colour.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow")
SIZES = ("small", "large")
BACKGROUNDS = ("black", "grey", "white")

PLACES = {
    "middle": "in the middle of",
    "left": "on the left of",
    "right": "on the right of",
    "top": "at the top of",
    "bottom": "at the bottom of",
}
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
_MIRRORED = {"right": "left", "below": "above"}

HELD_OUT_SHARE = 8
"""One combination of this many is never trained on."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One object."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture holds. `where` is a lone thing's place, or the first one's relation to the second."""

    things: tuple[Thing, ...]
    where: str
    background: str

    @property
    def prompt(self) -> str:
        """Plain language."""
        background = f"a {self.background} background"
        if len(self.things) == 1:
            return f"{self.things[0]} {PLACES[self.where]} {background}"
        return f"{self.things[0]} {RELATIONS[self.where]} {self.things[1]} on {background}"

    @property
    def combination(self) -> str:
        """Colours, shapes and arrangement, without sizes, background and wording."""
        things, where = self.things, self.where
        if len(things) == 2 and where in _MIRRORED:
            things, where = things[::-1], _MIRRORED[where]
        return " ".join([where, *(f"{thing.colour} {thing.shape}" for thing in things)])

    @property
    def held_out(self) -> bool:
        """Whether training must not see it."""
        digest = hashlib.sha256(self.combination.encode()).digest()
        return int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0


def all_scenes() -> Iterator[Scene]:
    """Every scene of the grammar."""
    things = [Thing(*fields) for fields in product(SIZES, COLOURS, SHAPES)]
    for background in BACKGROUNDS:
        for thing, place in product(things, PLACES):
            yield Scene((thing,), place, background)
        for first, second, relation in product(things, things, RELATIONS):
            if first.colour != second.colour:
                yield Scene((first, second), relation, background)


def sample_scenes(count: int, *, seed: int, held_out: bool) -> list[Scene]:
    """Scenes drawn from one side of the split; a quarter of them has a single thing."""
    rng = random.Random(seed)
    candidates = [scene for scene in all_scenes() if scene.held_out == held_out]
    single = [scene for scene in candidates if len(scene.things) == 1]
    double = [scene for scene in candidates if len(scene.things) == 2]
    return [rng.choice(single if rng.random() < 0.25 else double) for _ in range(count)]
