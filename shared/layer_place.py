"""Where a layer sits in its transformer, in words that hold for any model; a family's file tells it."""

import re

from msgspec import Struct

_NUMBERED = re.compile(r"(?P<stage>[^.]+)\.(?P<number>\d+)\.(?P<rest>.+)")


class LayerPlace(Struct, frozen=True, kw_only=True):
    """Block, stream, role and tie of a layer."""

    block: str
    """For people: "block 3", "unified block 7", "embedders", "final layer"."""
    stream: str | None
    """Of a block's layer: "image", "text", or "both"; None outside of blocks."""
    role: str
    """What it does, by the same word in every block: "q", "fc1"; outside of blocks "embedder" or "final"."""
    short: str
    """What tells it apart within its block."""
    tie: str | None = None
    """Layers of one tie are one matrix in the export format, and must have the same bits; None if alone."""


def place_by_number(path: str) -> LayerPlace:
    """All that a path tells by itself, for model cards of revisions that said no places."""
    if match := _NUMBERED.match(path):
        stage, number, rest = match.groups()
        role = rest.rpartition(".")[2]
        return LayerPlace(block=f"{stage} {number}", stream="both", role=role, short=rest)
    return LayerPlace(block="other layers", stream=None, role="other", short=path)
