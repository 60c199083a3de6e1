"""The linear layers of DiffusionKit's `MMDiT`, in the order of its forward pass."""

from typing import Any

from shared.errors import ModelUnavailableError
from shared.model_card import LayerInfo
from worker.engine.layers import find_linear, is_linear, shape_of

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
    linear = [path for path, module in modules if is_linear(module) and not path.startswith("to_offload.")]
    if not any(path.startswith(_BLOCKS) for path in linear):
        raise ModelUnavailableError(
            "this checkpoint is already quantized, nothing is left to measure; choose the full-precision one"
        )
    return [
        LayerInfo(path=path, shape=shape_of(find_linear(mmdit, path))) for path in sorted(linear, key=_place)
    ]


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
