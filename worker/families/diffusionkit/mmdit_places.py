"""Where a layer of DiffusionKit's `MMDiT` sits, read off its dotted path."""

import re

from shared.layer_place import LayerPlace

_BLOCK = re.compile(
    r"(multimodal|unified)_transformer_blocks\.(\d+)\.(?:(image|text)_)?transformer_block\.(.+)"
)
_ROLES = {
    "attn.q_proj": "q",
    "attn.k_proj": "k",
    "attn.v_proj": "v",
    "attn.o_proj": "o",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
    "adaLN_modulation.layers.1": "adaLN",
}


def place_of(path: str, *, tie: str | None) -> LayerPlace:
    """The place of a layer; a path of no known shape has the role "other"."""
    if match := _BLOCK.fullmatch(path):
        blocks, index, prefix, rest = match.groups()
        role = _ROLES.get(rest, "other")
        name = rest if role == "other" else role
        return LayerPlace(
            block=f"block {index}" if blocks == "multimodal" else f"unified block {index}",
            stream=prefix or "both",
            role=role,
            short=f"{prefix} {name}" if prefix else name,
            tie=tie,
        )
    if path.startswith("final_layer."):
        rest = path.removeprefix("final_layer.")
        short = "adaLN" if _ROLES.get(rest) == "adaLN" else rest
        return LayerPlace(block="final layer", stream=None, role="final", short=short, tie=tie)
    if "embedder" in path.partition(".")[0] or path.startswith("guidance_in."):
        short = path.replace(".mlp.layers.", ".")
        return LayerPlace(block="embedders", stream=None, role="embedder", short=short, tie=tie)
    return LayerPlace(block="other layers", stream=None, role="other", short=path, tie=tie)
