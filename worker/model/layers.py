"""The linear layers of a transformer, in the order of its forward pass, by dotted MLX path.

These are its `nn.Linear`, and the patch embedding: a convolution whose stride is its kernel is a linear layer
over patches. DiffusionKit holds it as one, others as an `nn.Linear`; its weight is read here as (outputs,
inputs), inputs in the order row, column, channel of a patch as DiffusionKit's convolution has them.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from shared.errors import ModelUnavailableError, TaskRefusedError
from shared.model_card import LayerInfo

PATCH_EMBEDDING = "x_embedder.proj"

# What a forward pass reads first comes first; blocks lie between these two.
_BEFORE_BLOCKS = ("y_embedder", "t_embedder", "guidance_in", "context_embedder", "x_embedder")
_BLOCKS = ("multimodal_transformer_blocks", "unified_transformer_blocks")
# Within a block: modulation, attention, then what follows attention.
_BEFORE_SDPA = ("adaLN_modulation", "attn.q_proj", "attn.k_proj", "attn.v_proj")
_AFTER_SDPA = ("attn.o_proj", "mlp.fc1", "mlp.fc2")


def linear_layers(mmdit: Any) -> list[LayerInfo]:
    """Every linear layer of the transformer, in the order in which a forward pass first needs it.

    `pos_embed` is an `nn.Embedding`, a table: it is not listed.

    Raises:
        ModelUnavailableError: none, because the checkpoint is already quantized.
    """
    modules: list[tuple[str, Any]] = mmdit.named_modules()
    # `to_offload` is a list of aliases that `cache_modulation_params` leaves behind.
    linear = [
        path
        for path, module in modules
        if isinstance(module, nn.Linear) and not path.startswith("to_offload.")
    ]
    if not linear:
        raise ModelUnavailableError(
            "this checkpoint is already quantized, nothing is left to measure; choose the full-precision one"
        )
    patches = [path for path, module in modules if path == PATCH_EMBEDDING and _is_over_patches(module)]
    return [
        LayerInfo(path=path, shape=_shape(find_linear(mmdit, path)))
        for path in sorted([*linear, *patches], key=_place)
    ]


def get_weight(mmdit: Any, layer: str) -> mx.array:
    """The weight (outputs, inputs) of a layer.

    Raises:
        TaskRefusedError: the model has no such layer.
    """
    module = find_linear(mmdit, layer)
    weight: mx.array = module.weight.reshape(_shape(module))
    return weight


def set_weight(mmdit: Any, layer: str, weight: mx.array) -> None:
    """Replace the weight (outputs, inputs) of a layer.

    Raises:
        TaskRefusedError: the model has no such layer.
    """
    module = find_linear(mmdit, layer)
    module.weight = weight.reshape(module.weight.shape)


def find_linear(mmdit: Any, layer: str) -> nn.Linear | nn.Conv2d:
    """The layer at a dotted path.

    Raises:
        TaskRefusedError: the model has no such layer.
    """
    node: Any = mmdit
    for name in layer.split("."):
        try:
            node = node[int(name)] if isinstance(node, list) else getattr(node, name)
        except (AttributeError, IndexError, ValueError):
            raise TaskRefusedError(f"this model has no layer {layer!r}") from None
    if not isinstance(node, nn.Linear) and not (layer == PATCH_EMBEDDING and _is_over_patches(node)):
        raise TaskRefusedError(f"{layer!r} of this model is no linear layer")
    module: nn.Linear | nn.Conv2d = node
    return module


def _is_over_patches(module: Any) -> bool:
    """Whether a module is a convolution that sees each pixel once."""
    return isinstance(module, nn.Conv2d) and tuple(module.stride) == tuple(module.weight.shape[1:3])


def _shape(module: nn.Linear | nn.Conv2d) -> tuple[int, int]:
    """(outputs, inputs)."""
    outputs: int = module.weight.shape[0]
    return outputs, module.weight.size // outputs


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
