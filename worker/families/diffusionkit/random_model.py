"""Random transformers of DiffusionKit's shapes: what a machine computes can be tried without a download."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import mlx.core as mx

from worker.families.diffusionkit.published import PublishedMMDiT
from worker.families.diffusionkit.quiet_imports import quiet_imports

with quiet_imports():
    from diffusionkit.mlx import DiffusionPipeline
    from diffusionkit.mlx.config import MMDiTConfig, PositionalEncoding
    from diffusionkit.mlx.sampler import FluxSampler, ModelSamplingDiscreteFlow


def sd3_config(*, full: bool) -> MMDiTConfig:
    """SD3's shape: learned positions, heads of 64, the last text block ends before attention."""
    return MMDiTConfig(
        num_heads=24 if full else 2,
        depth_multimodal=2 if full else 3,
        hidden_size_override=1536 if full else 128,
        max_latent_resolution=64,
        pooled_text_embed_dim=2048 if full else 64,
        token_level_text_embed_dim=4096 if full else 64,
        frequency_embed_dim=256 if full else 64,
        dtype=mx.float16,
        float16_dtype=mx.float16,
        low_memory_mode=False,
    )


def flux_config(*, full: bool) -> MMDiTConfig:
    """FLUX's shape: rotary positions, heads of 128 with q and k normed, unified blocks."""
    return MMDiTConfig(
        num_heads=24 if full else 2,
        depth_multimodal=1,
        depth_unified=1 if full else 2,
        parallel_mlp_for_unified_blocks=True,
        hidden_size_override=3072 if full else 256,
        patchify_via_reshape=True,
        pos_embed_type=PositionalEncoding.PreSDPARope,
        rope_axes_dim=(16, 56, 56),
        pooled_text_embed_dim=768 if full else 64,
        token_level_text_embed_dim=4096 if full else 64,
        frequency_embed_dim=256 if full else 64,
        use_qk_norm=True,
        dtype=mx.bfloat16,
        float16_dtype=mx.bfloat16,
        low_memory_mode=False,
    )


def random_pipeline(config: MMDiTConfig, dtype: mx.Dtype) -> Any:
    """Return what a family needs of a pipeline. The weights are drawn from seed 0, on the CPU."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        mx.random.seed(0)
        mmdit = PublishedMMDiT(config)
        mmdit.set_dtype(dtype)
        mx.eval(mmdit.parameters())
    finally:
        mx.set_default_device(before)
    sampler = FluxSampler(shift=1.0) if config.depth_unified else ModelSamplingDiscreteFlow(shift=3.0)
    pipeline = SimpleNamespace(mmdit=mmdit, sampler=sampler, activation_dtype=dtype)
    pipeline.get_sigmas = partial(DiffusionPipeline.get_sigmas, pipeline)
    return pipeline
