"""The transformers as their publishers run them, made of DiffusionKit's modules.

DiffusionKit's own forward pass is another one in four places, each mended here (docs/models.md says by how
much they change the velocity):

- it computes the sinusoids of the timestep in 16 bits; here in float32, and the result is rounded;
- it drops the biases of the keys, which a softmax can't see only where all keys have one and no norm follows;
- it takes the exact GELU; the publishers trained with the tanh form;
- it runs FLUX.1-dev with the configuration of FLUX.1-schnell, without its guidance embedding.

Judges: Stability AI's `mmdit.py`, Black Forest Labs' `flux/modules/layers.py`, and diffusers, which agrees
with both.
"""

import dataclasses
import math
import re
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from shared.errors import ModelUnavailableError
from worker.families.diffusionkit.quiet_imports import quiet_imports

with quiet_imports():
    from diffusionkit.mlx import model_io
    from diffusionkit.mlx.config import MMDiTConfig
    from diffusionkit.mlx.mmdit import MMDiT, TimestepAdapter
    from diffusionkit.mlx.sampler import FluxSampler

_adjust_sd3 = model_io.mmdit_state_dict_adjustments
_SD3_QKV_BIAS = re.compile(r"joint_blocks\.(\d+)\.(x|context)_block\.attn\.qkv\.bias\Z")


class PublishedTimestepAdapter(TimestepAdapter):  # type: ignore[misc]
    """Embeds timesteps, or a guidance: sinusoids in float32, then cosines before sines."""

    def timestep_embedding(self, t: mx.array) -> mx.array:
        """(B, frequency_embed_dim) float32, of (B,)."""
        half = self.config.frequency_embed_dim // 2
        # The publishers' operations in their order: at 3500, a guidance, the last bit is worth 2e-4 rad.
        exponents = -math.log(self.config.max_period) * np.arange(half, dtype=np.float32) / half
        angles = t.astype(mx.float32)[:, None] * mx.array(np.exp(exponents))
        return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


class PublishedMMDiT(MMDiT):  # type: ignore[misc]
    """DiffusionKit's transformer, mended. Parameters have the same names, and keys have a bias."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__(config)
        self.guidance: float | None = None
        """What a guidance embedding is asked for, times 1000; a number, so that it is no parameter."""
        # DiffusionKit's forward pass would embed the timestep in the guidance's place.
        self.config = dataclasses.replace(config, guidance_embed=False)
        self.t_embedder = PublishedTimestepAdapter(config)
        for module in self.modules():
            if hasattr(module, "k_proj"):
                module.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
            if hasattr(module, "act_fn"):
                module.act_fn = gelu_tanh

    @property
    def embeds_guidance(self) -> bool:
        """FLUX.1-dev does."""
        return not isinstance(self.guidance_in, nn.Identity)

    def set_guidance(self, guidance: float | None, dtype: mx.Dtype) -> None:
        """Set the guidance, rounded as the publishers round it: both factors in the activation dtype."""
        self.guidance = None if guidance is None else _rounded(guidance, dtype)

    def modulation_inputs(self, pooled: mx.array, timesteps: mx.array) -> mx.array:
        """(B, 1, 1, hidden) in the dtype of `pooled` (B, P); timesteps (B,) are not rounded.

        Raises:
            ModelUnavailableError: the model embeds a guidance, and `set_guidance` was not called.
        """
        embedded: mx.array = self._embed(self.t_embedder, timesteps, pooled.dtype) + self.y_embedder(pooled)
        if self.embeds_guidance:
            if self.guidance is None:
                raise ModelUnavailableError("this model needs a guidance and was given none")
            guidance = mx.full(timesteps.shape, self.guidance)
            embedded = embedded + self._embed(self.guidance_in, guidance, pooled.dtype)
        return embedded[:, None, None, :]

    def _embed(self, embedder: Any, values: mx.array, dtype: mx.Dtype) -> mx.array:
        sinusoids = self.t_embedder.timestep_embedding(values).astype(dtype)
        embedded: mx.array = embedder.mlp(sinusoids)
        return embedded


def _rounded(guidance: float, dtype: mx.Dtype) -> float:
    value: Any = (mx.array(guidance).astype(dtype) * 1000).item()
    return float(value)


@partial(mx.compile, shapeless=True)
def gelu_tanh(x: mx.array) -> mx.array:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), computed in float32: x^3 leaves float16 at 41."""
    wide = x.astype(mx.float32)
    tanh = mx.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide * wide * wide))
    return (0.5 * wide * (1 + tanh)).astype(x.dtype)


def published_timesteps(sampler: Any, sigmas: mx.array, dtype: mx.Dtype) -> mx.array:
    """Timesteps (N,) of noise levels (N,) float32.

    SD3's publishers leave them in float32. Those of FLUX round the level to the activation dtype, and then
    its product with 1000.
    """
    if isinstance(sampler, FluxSampler):
        sigmas = sigmas.astype(dtype)
    timesteps: mx.array = sampler.timestep(sigmas)
    return timesteps


def adjust_sd3_with_key_biases(state_dict: dict[str, mx.array], prefix: str = "") -> dict[str, mx.array]:
    """DiffusionKit's `mmdit_state_dict_adjustments`, and the key biases that it drops."""
    adjusted: dict[str, mx.array] = _adjust_sd3(state_dict, prefix=prefix)
    for name, bias in state_dict.items():
        if found := _SD3_QKV_BIAS.search(name):
            index, stream = found[1], "image" if found[2] == "x" else "text"
            path = f"multimodal_transformer_blocks.{index}.{stream}_transformer_block.attn.k_proj.bias"
            adjusted[path] = mx.split(bias, 3)[1]
    return adjusted
