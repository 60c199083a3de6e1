"""Where a layer sits in the transformer, read off its dotted MLX path."""

import re
from typing import Literal

from msgspec import Struct

Kind = Literal["q", "k", "v", "o", "fc1", "fc2", "adaLN", "embedder", "final", "other"]
Stream = Literal["image", "text", "both"]

KINDS: tuple[Kind, ...] = ("q", "k", "v", "o", "fc1", "fc2", "adaLN", "embedder", "final", "other")

_BLOCK = re.compile(
    r"(multimodal|unified)_transformer_blocks\.(\d+)\.(?:(image|text)_)?transformer_block\.(.+)"
)
_KIND_OF: dict[str, Kind] = {
    "attn.q_proj": "q",
    "attn.k_proj": "k",
    "attn.v_proj": "v",
    "attn.o_proj": "o",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
    "adaLN_modulation.layers.1": "adaLN",
}
_STREAM_OF: dict[str | None, Stream] = {"image": "image", "text": "text", None: "both"}


class LayerPlace(Struct, frozen=True, kw_only=True):
    """Block, stream and kind of a layer."""

    group: str
    """For people: "block 3", "unified block 7", "embedders", "final layer"."""
    stream: Stream | None
    """What the layer works on: image, text, or both in a unified block; None outside of blocks."""
    kind: Kind
    short: str
    """What tells it apart within its group."""


def place_of(path: str) -> LayerPlace:
    """Return where the layer at `path` sits; a path of no known shape is "other"."""
    if match := _BLOCK.fullmatch(path):
        blocks, index, prefix, rest = match.groups()
        stream = _STREAM_OF[prefix]
        group = f"block {index}" if blocks == "multimodal" else f"unified block {index}"
        kind = _KIND_OF.get(rest, "other")
        name = rest if kind == "other" else kind
        return LayerPlace(
            group=group, stream=stream, kind=kind, short=name if stream == "both" else f"{stream} {name}"
        )
    if path.startswith("final_layer."):
        rest = path.removeprefix("final_layer.")
        short = "adaLN" if _KIND_OF.get(rest) == "adaLN" else rest
        return LayerPlace(group="final layer", stream=None, kind="final", short=short)
    if "embedder" in path.partition(".")[0] or path.startswith("guidance_in."):
        return LayerPlace(
            group="embedders", stream=None, kind="embedder", short=path.replace(".mlp.layers.", ".")
        )
    return LayerPlace(group="other layers", stream=None, kind="other", short=path)
