"""Transformers of seeded random weights and samples to go with them, for tests and benchmarks.

Everything here is DiffusionKit's own: its `MMDiT`, its samplers, its `CFGDenoiser`; only the weights are
drawn instead of downloaded.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np

from shared.layout.sample_set import SampleSet
from worker.engine.batches import guided_velocity
from worker.engine.layers import get_weight, set_weight
from worker.engine.trajectory import Trajectory
from worker.families.diffusionkit.layers import linear_layers
from worker.families.diffusionkit.mmdit_family import MMDiTFamily
from worker.families.diffusionkit.quiet_imports import quiet_imports
from worker.families.family import Conditioning, Family
from worker.families.flux import Flux
from worker.families.sd3 import Sd3

with quiet_imports():
    from diffusionkit.mlx import CFGDenoiser, DiffusionPipeline, to_d
    from diffusionkit.mlx.config import MMDiTConfig, PositionalEncoding
    from diffusionkit.mlx.mmdit import MMDiT
    from diffusionkit.mlx.sampler import FluxSampler, ModelSamplingDiscreteFlow


def sd3_config(*, depth: int = 2, hidden: int = 64, heads: int = 2, text_dim: int = 64) -> MMDiTConfig:
    """SD3-shaped: learned positions, no unified blocks, the last text block ends before attention."""
    return MMDiTConfig(
        num_heads=heads,
        depth_multimodal=depth,
        hidden_size_override=hidden,
        max_latent_resolution=64,
        pooled_text_embed_dim=64,
        token_level_text_embed_dim=text_dim,
        frequency_embed_dim=64,
        dtype=mx.float32,
        float16_dtype=mx.float16,
        low_memory_mode=False,
    )


def flux_config(*, depth: int = 1, unified: int = 2, hidden: int = 64, heads: int = 2) -> MMDiTConfig:
    """FLUX-shaped: rotary positions, q and k normed, unified parallel blocks, patches by reshaping."""
    head = hidden // heads
    return MMDiTConfig(
        num_heads=heads,
        depth_multimodal=depth,
        depth_unified=unified,
        parallel_mlp_for_unified_blocks=True,
        hidden_size_override=hidden,
        patchify_via_reshape=True,
        pos_embed_type=PositionalEncoding.PreSDPARope,
        rope_axes_dim=(head - 2 * (head // 4), head // 4, head // 4),
        pooled_text_embed_dim=64,
        token_level_text_embed_dim=64,
        frequency_embed_dim=64,
        use_qk_norm=True,
        dtype=mx.float32,
        low_memory_mode=False,
    )


def random_mmdit(config: MMDiTConfig, *, seed: int = 0, spread: float = 0.0) -> MMDiT:
    """A transformer with MLX's own initialization, drawn from `seed`: equal calls give equal weights.

    `spread` makes layers differ in scale, by the standard deviation of its logarithm.
    """
    mx.random.seed(seed)
    mmdit = MMDiT(config)
    scales = np.exp(spread * np.random.default_rng(seed).standard_normal(len(linear_layers(mmdit))))
    for layer, scale in zip(linear_layers(mmdit), scales, strict=True):
        set_weight(mmdit, layer.path, float(scale) * get_weight(mmdit, layer.path))
    mx.eval(mmdit.parameters())
    return mmdit


def random_pipeline(config: MMDiTConfig, *, seed: int = 0, shift: float = 3.0, spread: float = 0.0) -> Any:
    """A pipeline of random weights, in float32."""
    return pipeline_of(random_mmdit(config, seed=seed, spread=spread), shift=shift)


def pipeline_of(mmdit: MMDiT, *, shift: float = 3.0) -> Any:
    """What an engine needs of DiffusionKit's pipeline: transformer, sampler, activation dtype."""
    sampler = FluxSampler if mmdit.config.depth_unified else ModelSamplingDiscreteFlow
    pipeline = SimpleNamespace(mmdit=mmdit, sampler=sampler(shift=shift), activation_dtype=mx.float32)
    pipeline.get_sigmas = partial(DiffusionPipeline.get_sigmas, pipeline)
    return pipeline


def draw_samples(
    pipeline: Any,
    *,
    num_images: int = 2,
    num_steps: int = 3,
    cfg_weight: float = 4.0,
    latent_size: tuple[int, int] = (8, 8),
    text_tokens: int = 6,
    seed: int = 0,
) -> SampleSet:
    """Denoise random noise under random conditioning by DiffusionKit's own denoiser and Euler step.

    The adaLN weights are put back afterwards, as `clear_cache` would from disk.
    """
    random = np.random.default_rng(seed)
    config, channels = pipeline.mmdit.config, pipeline.mmdit.config.vae_latent_dim
    batch = 2 if cfg_weight > 0 else 1
    sigmas = pipeline.get_sigmas(pipeline.sampler, num_steps)
    rows: list[dict[str, Any]] = []
    conditioning = random.standard_normal((num_images, batch, text_tokens, config.token_level_text_embed_dim))
    pooled = random.standard_normal((num_images, batch, config.pooled_text_embed_dim))
    for image in range(num_images):
        x = mx.array(random.standard_normal((1, *latent_size, channels)).astype(np.float32)) * sigmas[0]
        denoise = plain_denoiser(pipeline, sigmas, conditioning[image], pooled[image], cfg_weight=cfg_weight)
        for step in range(len(sigmas) - 1):
            d = denoise(x, step)
            x_next = x + d * (sigmas[step + 1] - sigmas[step])
            mx.eval(x_next)
            rows.append({"image": image, "step": step, "x": x, "x_next": x_next})
            x = x_next
    steps = [row["step"] for row in rows]
    has_next = np.array([step < len(sigmas) - 2 for step in steps])
    sigma, x_next_all = np.array(sigmas), np.concatenate([np.array(row["x_next"]) for row in rows])
    return SampleSet(
        x=np.concatenate([np.array(row["x"]) for row in rows]),
        timestep=np.array(pipeline.sampler.timestep(sigmas))[steps],
        sigma=sigma[steps],
        x_next=np.where(has_next[:, None, None, None], x_next_all, np.float32(0)),
        sigma_next=sigma[np.array(steps) + 1],
        has_next=has_next,
        step_index=np.array(steps, np.int32),
        image=np.array([row["image"] for row in rows], np.int32),
        image_index=np.arange(num_images, dtype=np.int32),
        conditioning={
            "conditioning": conditioning.astype(np.float32),
            "pooled_conditioning": pooled.astype(np.float32),
        },
    )


def draw_trajectory(
    family: Family,
    *,
    num_steps: int,
    cfg_weight: float,
    latent_size: tuple[int, int] = (4, 4),
    text_tokens: int = 3,
    seed: int = 0,
) -> Trajectory:
    """Denoise random noise under random conditioning by Euler steps along the family's own velocity."""
    random, rows = np.random.default_rng(seed), 2 if cfg_weight > 0 else 1

    def draw(*shape: int) -> mx.array:
        return mx.array(random.standard_normal(shape).astype(np.float32))

    conditioning, sigmas = family.canary_conditioning(draw, rows, text_tokens), family.sigmas(num_steps)
    x = [sigmas[0] * draw(1, *latent_size, family.channels)]
    for step in range(num_steps):
        x.append(euler_step(family, x[-1], sigmas, step, conditioning, cfg_weight))
        mx.eval(x[-1])
    return Trajectory(x=x, sigmas=sigmas, timesteps=family.timesteps(sigmas), conditioning=conditioning)


def euler_step(
    family: Family,
    x_t: mx.array,
    sigmas: mx.array,
    step: int,
    conditioning: Conditioning,
    cfg_weight: float,
) -> mx.array:
    """x_{n+1} (1, H, W, C) float32, lazy, from x_n by the float32 pass."""
    rows = 2 if cfg_weight > 0 else 1
    velocity = family.velocity(
        mx.repeat(x_t, rows, axis=0), mx.broadcast_to(sigmas[step], [rows]), conditioning
    )
    return x_t + (sigmas[step + 1] - sigmas[step]) * guided_velocity(velocity, cfg_weight)


def plain_denoiser(
    pipeline: Any, sigmas: mx.array, conditioning: Any, pooled: Any, *, cfg_weight: float
) -> Any:
    """`d(x, step)` by DiffusionKit's `CFGDenoiser` over its own modulation cache, weights kept.

    With `exactly=True` it leaves out the rounding of the sampler's detour: x - (x - sigma v), divided by
    sigma, loses digits of v for a small sigma, and none for a large power of two.
    """
    denoiser = CFGDenoiser(pipeline)
    timesteps = pipeline.sampler.timestep(sigmas).astype(pipeline.activation_dtype)
    adaln = [
        (name, module.weight, module.bias)
        for name, module in pipeline.mmdit.named_modules()
        if "adaLN_modulation.layers.1" in name
    ]
    modules = dict(pipeline.mmdit.named_modules())
    pipeline.mmdit.clear_modulation_params_cache()
    denoiser.cache_modulation_params(mx.array(pooled.astype(np.float32)), timesteps)
    for name, weight, bias in adaln:
        modules[name].weight, modules[name].bias = weight, bias
    del pipeline.mmdit.to_offload
    text = mx.array(conditioning.astype(np.float32))

    def d(x: mx.array, step: int, *, exactly: bool = False) -> mx.array:
        sigma = mx.array(2.0**30) if exactly else sigmas[step]
        denoised = denoiser(x, timesteps[step], sigma, text, cfg_weight=cfg_weight)
        return to_d(x, sigma, denoised)

    return d


def as_family(pipeline: Any) -> MMDiTFamily:
    """The family that an engine measures, of a pipeline."""
    return (Flux if pipeline.mmdit.config.depth_unified else Sd3)(pipeline)
