"""From MLX parameter names to the key names of the original SD3, CLIP, T5 and FLUX checkpoints.

DiffusionKit's loaders go the other way (`model_io.*_state_dict_adjustments`,
`map_clip_text_encoder_weights`); each function here is the inverse of one of them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

Array = np.ndarray[Any, np.dtype[Any]]
Weights = dict[str, Array]

MMDIT_PREFIX = "model.diffusion_model."
VAE_ENCODER_PREFIX = "first_stage_model.encoder."
VAE_DECODER_PREFIX = "first_stage_model.decoder."

# DiffusionKit strips the prefix with str.lstrip, which eats "fin" of "final_layer" too; it mends that itself.
_MMDIT_NAMES = (
    (".text_transformer_block.", ".context_block."),
    (".image_transformer_block.", ".x_block."),
    ("multimodal_transformer_blocks.", "joint_blocks."),
    (".qk_norm.q_norm.", ".attn.ln_q."),
    (".qk_norm.k_norm.", ".attn.ln_k."),
    (".attn.o_proj.", ".attn.proj."),
    (".layers.", "."),
    ("x_pos_embedder.pos_embed.weight", "pos_embed"),
)

_VAE_NAMES = (
    ("mid_blocks.0.", "mid.block_1."),
    ("mid_blocks.1.", "mid.attn_1."),
    ("mid_blocks.2.", "mid.block_2."),
    ("up_blocks.", "up."),
    ("down_blocks.", "down."),
    (".resnets.", ".block."),
    (".upsample.", ".upsample.conv."),
    (".downsample.", ".downsample.conv."),
    (".conv_shortcut.", ".nin_shortcut."),
    ("conv_norm_out.", "norm_out."),
    (".group_norm.", ".norm."),
    (".query_proj.", ".q."),
    (".key_proj.", ".k."),
    (".value_proj.", ".v."),
    (".out_proj.", ".proj_out."),
)

_CLIP_NAMES = (
    ("layers.", "encoder.layers."),
    (".attention.query_proj.", ".self_attn.q_proj."),
    (".attention.key_proj.", ".self_attn.k_proj."),
    (".attention.value_proj.", ".self_attn.v_proj."),
    (".attention.out_proj.", ".self_attn.out_proj."),
    (".linear1.", ".mlp.fc1."),
    (".linear2.", ".mlp.fc2."),
    ("token_embedding.", "embeddings.token_embedding."),
    ("position_embedding.", "embeddings.position_embedding."),
)

_T5_NAMES = (
    ("wte.", "encoder.embed_tokens."),
    ("encoder.ln.", "encoder.final_layer_norm."),
    (
        "encoder.relative_attention_bias.embeddings.",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.",
    ),
    ("encoder.layers.", "encoder.block."),
    (".attention.query_proj.", ".layer.0.SelfAttention.q."),
    (".attention.key_proj.", ".layer.0.SelfAttention.k."),
    (".attention.value_proj.", ".layer.0.SelfAttention.v."),
    (".attention.out_proj.", ".layer.0.SelfAttention.o."),
    (".ln1.", ".layer.0.layer_norm."),
    (".ln2.", ".layer.1.layer_norm."),
    (".dense.", ".layer.1.DenseReluDense."),
)

_FLUX_NAMES = (
    ("multimodal_transformer_blocks.", "double_blocks."),
    ("unified_transformer_blocks.", "single_blocks."),
    (".image_transformer_block.adaLN_modulation.layers.1.", ".img_mod.lin."),
    (".text_transformer_block.adaLN_modulation.layers.1.", ".txt_mod.lin."),
    (".transformer_block.adaLN_modulation.layers.1.", ".modulation.lin."),
    (".image_transformer_block.qk_norm.q_norm.weight", ".img_attn.norm.query_norm.scale"),
    (".image_transformer_block.qk_norm.k_norm.weight", ".img_attn.norm.key_norm.scale"),
    (".text_transformer_block.qk_norm.q_norm.weight", ".txt_attn.norm.query_norm.scale"),
    (".text_transformer_block.qk_norm.k_norm.weight", ".txt_attn.norm.key_norm.scale"),
    (".transformer_block.qk_norm.q_norm.weight", ".norm.query_norm.scale"),
    (".transformer_block.qk_norm.k_norm.weight", ".norm.key_norm.scale"),
    (".image_transformer_block.attn.o_proj.", ".img_attn.proj."),
    (".text_transformer_block.attn.o_proj.", ".txt_attn.proj."),
    (".image_transformer_block.attn.", ".img_attn."),
    (".text_transformer_block.attn.", ".txt_attn."),
    (".image_transformer_block.mlp.fc1.", ".img_mlp.0."),
    (".image_transformer_block.mlp.fc2.", ".img_mlp.2."),
    (".text_transformer_block.mlp.fc1.", ".txt_mlp.0."),
    (".text_transformer_block.mlp.fc2.", ".txt_mlp.2."),
    ("final_layer.adaLN_modulation.layers.1.", "final_layer.adaLN_modulation.1."),
    (".mlp.layers.0.", ".in_layer."),
    (".mlp.layers.2.", ".out_layer."),
    ("x_embedder.proj.", "img_in."),
    ("context_embedder.", "txt_in."),
    ("t_embedder.", "time_in."),
    ("y_embedder.", "vector_in."),
)


def empty_parameters(module: Module) -> Weights:
    """Arrays in the shape of each parameter, of a dtype of no bytes: shapes alone, at no cost of memory."""
    parameters: Any = tree_flatten(module.parameters())  # type: ignore[no-untyped-call]
    return {name: np.zeros(value.shape, "V0") for name, value in parameters}


def mmdit_to_sd3(parameters: Mapping[str, Array]) -> Weights:
    """Keys and shapes of the transformer in an SD3 checkpoint."""
    weights = _rename(_merge_qkv(parameters), _MMDIT_NAMES)
    weights["x_embedder.proj.weight"] = _channels_first(weights["x_embedder.proj.weight"])
    weights["pos_embed"] = weights["pos_embed"][None]
    return {MMDIT_PREFIX + name: weight for name, weight in weights.items()}


def vae_to_sd3(parameters: Mapping[str, Array], prefix: str) -> Weights:
    """Keys and shapes of a VAE half in an SD3 checkpoint, where a linear layer is a 1x1 convolution."""
    weights = {}
    for name, weight in _rename(parameters, _VAE_NAMES).items():
        if weight.ndim == 2:
            weight = weight[:, :, None, None]
        elif weight.ndim == 4:
            weight = _channels_first(weight)
        weights[prefix + name] = np.ascontiguousarray(weight)
    return weights


def clip_to_hf(parameters: Mapping[str, Array]) -> Weights:
    """Keys of a CLIP text encoder in Hugging Face's layout."""
    weights = _rename(parameters, _CLIP_NAMES)
    return {
        name if name.startswith("text_projection") else f"text_model.{name}": weight
        for name, weight in weights.items()
    }


def t5_to_google(parameters: Mapping[str, Array]) -> Weights:
    """Keys of T5's encoder in Google's layout, where the token embedding stands twice."""
    weights = _rename(parameters, _T5_NAMES)
    return {"shared.weight": weights["encoder.embed_tokens.weight"], **weights}


def mmdit_to_flux(parameters: Mapping[str, Array]) -> Weights:
    """Keys and shapes of the transformer in a FLUX.1 checkpoint."""
    weights = _rename(_merge_qkv(_merge_unified(parameters)), _FLUX_NAMES)
    weights["img_in.weight"] = weights["img_in.weight"][:, 0, 0, :]
    return weights


def _rename(parameters: Mapping[str, Array], names: Iterable[tuple[str, str]]) -> Weights:
    weights = {}
    for name, weight in parameters.items():
        for ours, theirs in names:
            # A "layers." at the start must not match inside "x.layers.": only whole path parts do.
            if ours.startswith("."):
                name = name.replace(ours, theirs)
            elif name.startswith(ours):
                name = theirs + name.removeprefix(ours)
        weights[name] = weight
    return weights


def _merge_qkv(parameters: Mapping[str, Array]) -> Weights:
    """One qkv matrix for three; DiffusionKit's own modules have no key bias, which is then zero."""
    weights = dict(parameters)
    for name in [name for name in weights if name.endswith(".attn.q_proj.weight")]:
        stem = name.removesuffix("q_proj.weight")
        query, value = weights.pop(name), weights.pop(f"{stem}v_proj.weight")
        weights[f"{stem}qkv.weight"] = np.concatenate([query, weights.pop(f"{stem}k_proj.weight"), value])
        bias = weights.pop(f"{stem}q_proj.bias")
        key_bias = weights.pop(f"{stem}k_proj.bias", np.zeros_like(bias))
        weights[f"{stem}qkv.bias"] = np.concatenate([bias, key_bias, weights.pop(f"{stem}v_proj.bias")])
    return weights


def _merge_unified(parameters: Mapping[str, Array]) -> Weights:
    """`linear1` and `linear2` of FLUX's unified blocks."""
    weights = dict(parameters)
    for name in [name for name in weights if re.fullmatch(r"unified.*\.attn\.q_proj\.weight", name)]:
        block = name.removesuffix("attn.q_proj.weight")
        stem = block.removesuffix("transformer_block.")
        query_bias = weights.pop(f"{block}attn.q_proj.bias")
        key_bias = weights.pop(f"{block}attn.k_proj.bias", np.zeros_like(query_bias))
        inputs = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc1")
        weights[f"{stem}linear1.weight"] = np.concatenate([weights.pop(f"{block}{i}.weight") for i in inputs])
        weights[f"{stem}linear1.bias"] = np.concatenate(
            [query_bias, key_bias] + [weights.pop(f"{block}{i}.bias") for i in inputs[2:]]
        )
        weights[f"{stem}linear2.weight"] = np.concatenate(
            [weights.pop(f"{block}{i}.weight") for i in ("attn.o_proj", "mlp.fc2")], axis=1
        )
        weights[f"{stem}linear2.bias"] = weights.pop(f"{block}attn.o_proj.bias")
        # The loader copies that one bias to both, and the forward pass ignores the second.
        del weights[f"{block}mlp.fc2.bias"]
    return weights


def _channels_first(weight: Array) -> Array:
    return np.ascontiguousarray(weight.transpose(0, 3, 1, 2))
