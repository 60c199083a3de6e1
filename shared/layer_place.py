"""Where a layer sits in its transformer, in words that hold for any model; a family's file tells it."""

from msgspec import Struct


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
    tie: str | None
    """Layers of one tie are one matrix in the export format, and must have the same bits; None if alone."""
