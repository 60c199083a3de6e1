"""A FLUX-shaped transformer with random weights, loaded by DiffusionKit's `load_flux`.

Only the transformer, in float32 if need be; tests.tiny_models has whole models under the public ids.
"""

from pathlib import Path

import mlx.core as mx
import pytest

from worker.families.diffusionkit.files import ModelFiles
from worker.families.diffusionkit.quiet_imports import quiet_imports
from worker.families.diffusionkit.sd3_layout import empty_parameters, mmdit_to_flux
from worker.families.diffusionkit.tiny_checkpoint import random_like, write_weights

with quiet_imports():
    from diffusionkit.mlx import model_io
    from diffusionkit.mlx.config import MMDiTConfig, PositionalEncoding
    from diffusionkit.mlx.mmdit import MMDiT

FLUX = "argmaxinc/mlx-FLUX.1-schnell"

TINY_FLUX = MMDiTConfig(
    num_heads=2,
    depth_multimodal=2,
    depth_unified=2,
    hidden_size_override=64,
    patchify_via_reshape=True,
    pos_embed_type=PositionalEncoding.PreSDPARope,
    rope_axes_dim=(8, 12, 12),
    pooled_text_embed_dim=64,
    token_level_text_embed_dim=128,
    use_qk_norm=True,
    dtype=mx.float32,
    float16_dtype=mx.bfloat16,
)


def load_tiny_flux(folder: Path, *, float16: bool = False) -> MMDiT:
    """Write the checkpoint into `folder` where need be, and load it."""
    path = folder / "tiny-flux.safetensors"
    if not path.exists():
        write_weights(path, random_like(mmdit_to_flux(empty_parameters(MMDiT(TINY_FLUX))), seed=0))
    files = ModelFiles(FLUX, "float32", path, None)
    with pytest.MonkeyPatch.context() as patch, files.visible():
        patch.setattr(model_io, "FLUX_SCHNELL", TINY_FLUX)
        patch.setattr(model_io, "hf_hub_download", lambda repo, name: str(path))
        return model_io.load_flux(key=FLUX, model_key=FLUX, float16=float16, low_memory_mode=False)
