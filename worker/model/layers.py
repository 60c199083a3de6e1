"""The `nn.Linear` layers of a transformer, in the order of its forward pass, by dotted MLX path."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from shared.errors import ModelUnavailableError, TaskRefusedError
from shared.model_card import LayerInfo

# What a forward pass reads first comes first; blocks lie between these two.
_BEFORE_BLOCKS = ("y_embedder", "t_embedder", "guidance_in", "context_embedder", "x_embedder")
_BLOCKS = ("multimodal_transformer_blocks", "unified_transformer_blocks")
# Within a block: modulation, attention, then what follows attention.
_BEFORE_SDPA = ("adaLN_modulation", "attn.q_proj", "attn.k_proj", "attn.v_proj")
_AFTER_SDPA = ("attn.o_proj", "mlp.fc1", "mlp.fc2")


def linear_layers(mmdit: Any) -> list[LayerInfo]:
    """Every `nn.Linear` of the transformer, in the order in which a forward pass first needs it.

    `pos_embed` is an `nn.Embedding` and `x_embedder.proj` a convolution: neither is listed.

    Raises:
        ModelUnavailableError: none, because the checkpoint is already quantized.
    """
    modules: list[tuple[str, Any]] = mmdit.named_modules()
    layers = [
        LayerInfo(path=path, shape=(module.weight.shape[0], module.weight.shape[1]))
        for path, module in modules
        # A list of aliases that `cache_modulation_params` leaves behind.
        if isinstance(module, nn.Linear) and not path.startswith("to_offload.")
    ]
    if not layers:
        raise ModelUnavailableError(
            "this checkpoint is already quantized, nothing is left to measure; choose the full-precision one"
        )
    return sorted(layers, key=lambda layer: _place(layer.path))


def get_weight(mmdit: Any, layer: str) -> mx.array:
    """The weight (outputs, inputs) of a layer.

    Raises:
        TaskRefusedError: the model has no such `nn.Linear`.
    """
    weight: mx.array = find_linear(mmdit, layer).weight
    return weight


def set_weight(mmdit: Any, layer: str, weight: mx.array) -> None:
    """Replace the weight (outputs, inputs) of a layer.

    Raises:
        TaskRefusedError: the model has no such `nn.Linear`.
    """
    find_linear(mmdit, layer).weight = weight


def find_linear(mmdit: Any, layer: str) -> nn.Linear:
    """The layer at a dotted path.

    Raises:
        TaskRefusedError: the model has no such `nn.Linear`.
    """
    node: Any = mmdit
    for name in layer.split("."):
        try:
            node = node[int(name)] if isinstance(node, list) else getattr(node, name)
        except (AttributeError, IndexError, ValueError):
            raise TaskRefusedError(f"this model has no layer {layer!r}") from None
    if not isinstance(node, nn.Linear):
        raise TaskRefusedError(f"{layer!r} of this model is no nn.Linear")
    return node


def _place(path: str) -> tuple[int, int, int, int, int, str]:
    """Sort key: part of the model, block, before or after attention, image or text, place there."""
    root, _, rest = path.partition(".")
    if root in _BLOCKS:
        index, _, inner = rest.partition(".")
        side, _, name = inner.partition(".")
        late = any(name.startswith(late_name) for late_name in _AFTER_SDPA)
        order = _AFTER_SDPA if late else _BEFORE_SDPA
        return 10 + _BLOCKS.index(root), int(index), late, side.startswith("text"), _rank(name, order), name
    if root in _BEFORE_BLOCKS:
        return 0, _BEFORE_BLOCKS.index(root), 0, 0, 0, rest
    return 20, 0, 0, 0, _rank(rest, ("adaLN_modulation",)), path


def _rank(name: str, order: tuple[str, ...]) -> int:
    return next((rank for rank, start in enumerate(order) if name.startswith(start)), len(order))
