"""The same checkpoints in diffusers' models, converted by diffusers' own functions. Needs the dev extra."""

import math
from pathlib import Path
from types import FunctionType
from typing import Any, Literal
from unittest.mock import patch

import mlx.core as mx
import numpy as np
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.loaders import single_file_utils
from diffusers.models import embeddings
from safetensors.torch import load_file

from benchmarks.published_models import (
    HEADS,
    HIDDEN,
    LATENT,
    MAX_RESOLUTION,
    POOLED,
    TEXT,
    TOKENS,
    Case,
    DType,
    Question,
)
from shared.layout.npz import Array


def load_diffusers(case: Case, path: Path, dtype: DType | Literal["float64"]) -> Any:
    """The same file in diffusers' model, converted by diffusers' own function."""
    config = case.config
    sizes: dict[str, Any] = {
        "num_layers": config.depth_multimodal,
        "attention_head_dim": HIDDEN // HEADS,
        "num_attention_heads": HEADS,
        "joint_attention_dim": TEXT,
        "pooled_projection_dim": POOLED,
    }
    weights = load_file(path)
    if case.is_flux:
        model = FluxTransformer2DModel(
            **sizes,
            num_single_layers=config.depth_unified,
            axes_dims_rope=config.rope_axes_dim,
            guidance_embeds=case.guidance is not None,
        )
        # The converter has FLUX's width written into it.
        convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
        code = convert.__code__
        widths = tuple(HIDDEN if value == 3072 else value for value in code.co_consts)
        convert = FunctionType(code.replace(co_consts=widths), convert.__globals__)
    else:
        model = SD3Transformer2DModel(
            **sizes,
            caption_projection_dim=HIDDEN,
            sample_size=LATENT,
            pos_embed_max_size=MAX_RESOLUTION,
            qk_norm="rms_norm" if config.use_qk_norm else None,
        )
        convert = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers
    model.load_state_dict(convert(weights), strict=True)
    return model.eval().to(getattr(torch, dtype))


def diffusers_velocity(case: Case, model: Any, question: Question, timestep: float, dtype: DType) -> Array:
    """(B, H, W, C) float32; `timestep` as the transformer embeds it, guidance as `dtype` rounds it."""

    def tensor(values: Array) -> Any:
        return torch.from_numpy(np.ascontiguousarray(values)).to(model.dtype)

    rows = len(question.x)
    with torch.no_grad():
        if not case.is_flux:
            latent = tensor(question.x.transpose(0, 3, 1, 2))
            steps = torch.full((rows,), timestep)
            output = model(latent, tensor(question.text), tensor(question.pooled), steps).sample
            return np.asarray(output.float().numpy().transpose(0, 2, 3, 1))
        side = LATENT // 2
        ids = torch.from_numpy(np.stack(np.indices((1, side, side)), -1).reshape(-1, 3).astype(np.float32))
        output = model(
            tensor(_packed(question.x)),
            tensor(question.text),
            tensor(question.pooled),
            # Times 1000 again inside, in the model's dtype.
            torch.full((rows,), timestep / 1000),
            ids,
            torch.zeros(TOKENS, 3),
            None if case.guidance is None else torch.full((rows,), _rounded_guidance(case, dtype) / 1000),
        ).sample
    return _unpacked(output.float().numpy(), side)


def float64_velocity(case: Case, model: Any, question: Question, timestep: float) -> Array:
    """What `diffusers_velocity` would be without rounding; of a model in float64, with float32's guidance."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        # diffusers computes them in float32, whatever the model's dtype.
        with patch.object(embeddings, "get_timestep_embedding", _float64_sinusoids):
            return diffusers_velocity(case, model, question, timestep, "float32")
    finally:
        torch.set_default_dtype(usual)


def _float64_sinusoids(timesteps: Any, embedding_dim: int, **settings: Any) -> Any:
    """(B, embedding_dim) float64, cosines before sines, as all these models have them."""
    if not settings["flip_sin_to_cos"] or settings["downscale_freq_shift"]:
        raise AssertionError(f"other sinusoids are wanted: {settings}")
    half = embedding_dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / half)
    angles = settings["scale"] * timesteps[:, None].double() * frequencies
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def _rounded_guidance(case: Case, dtype: DType) -> float:
    return float((mx.array(case.guidance).astype(getattr(mx, dtype)) * 1000).item())


def _packed(x: Array) -> Array:
    """(B, H, W, C) as Black Forest Labs pack it: "b c (h ph) (w pw) -> b (h w) (c ph pw)"."""
    rows, height, width, channels = x.shape
    patches = x.reshape(rows, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4)
    return patches.reshape(rows, height * width // 4, channels * 4)


def _unpacked(tokens: Array, side: int) -> Array:
    patches = tokens.reshape(len(tokens), side, side, -1, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return patches.reshape(len(tokens), 2 * side, 2 * side, -1)
