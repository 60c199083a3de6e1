"""The `quantization` block of config.json, as mlx-lm and the tools around it write and read it.

    {"group_size": 64, "bits": 4, "<path>": {"group_size": 32, "bits": 6}, "<path>": false}

The first two are what every quantized layer has that is not named. `false` says that a layer keeps its
weight. mlx-lm leaves such layers out and finds them by their missing scales; it takes `false`, too, and
readers that can't see the weights need it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from shared.plan import Choice

Block = dict[str, Any]


def quantization_block(layers: Mapping[str, Choice], kept: Iterable[str]) -> Block:
    """Return the block of a model; empty if nothing is quantized.

    Args:
        layers: choice of each quantized layer, by dotted MLX path.
        kept: layers that MLX could quantize, and that keep their weights.
    """
    if not layers:
        return {}
    # The most common choice; of several, the first in sorted order.
    common = max(sorted(set(layers.values())), key=Counter(layers.values()).__getitem__)
    block: Block = _parameters(common)
    block |= {path: _parameters(choice) for path, choice in layers.items() if choice != common}
    return block | dict.fromkeys(kept, False)


def choice_in(block: Mapping[str, Any], path: str) -> Choice | None:
    """Return what a block says of a layer; None if it keeps its weight, or if nothing sensible is said."""
    said = block.get(path, block)
    try:
        return msgspec.convert({"bits": said["bits"], "group_size": said["group_size"]}, Choice)
    except (KeyError, TypeError, msgspec.ValidationError):
        return None


def _parameters(choice: Choice) -> dict[str, Any]:
    parameters: dict[str, Any] = msgspec.to_builtins(choice)
    return {"group_size": parameters["group_size"], "bits": parameters["bits"]}
