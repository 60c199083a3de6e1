"""Where a layer is in its transformer, in terms that fit every model. Each family provides it."""

import re

from msgspec import Struct

_NUMBERED = re.compile(r"(?P<stage>[^.]+)\.(?P<number>\d+)\.(?P<rest>.+)")


class LayerPlace(Struct, frozen=True, kw_only=True):
    """Block, stream, role and tie of a layer."""

    block: str
    """The block's name: "block 3", "unified block 7", "embedders" or "final layer"."""
    stream: str | None
    """What the layer works on: "image", "text" or "both"; None outside of blocks."""
    role: str
    """What the layer does, the same word in every block ("q", "fc1"); else "embedder" or "final"."""
    short: str
    """A short name that is unique within the block."""
    tie: str | None = None
    """Layers with the same tie are one matrix in the export format and need the same bits; None if alone."""


def place_by_number(path: str) -> LayerPlace:
    """Return all that a path tells by itself, for model cards of revisions that gave no places."""
    if match := _NUMBERED.match(path):
        stage, number, rest = match.groups()
        role = rest.rpartition(".")[2]
        return LayerPlace(block=f"{stage} {number}", stream="both", role=role, short=rest)
    return LayerPlace(block="other layers", stream=None, role="other", short=path)
