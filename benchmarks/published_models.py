"""Small transformers in the publishers' own layouts, no bias zero, and questions to ask them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from shared.layout.npz import Array
from shared.models import Reference
from worker.families.diffusionkit.files import ModelFiles
from worker.families.diffusionkit.modulation import set_modulation
from worker.families.diffusionkit.published import PublishedMMDiT, published_timesteps
from worker.families.diffusionkit.quiet_imports import quiet_imports
from worker.families.diffusionkit.sd3_layout import empty_parameters, mmdit_to_flux, mmdit_to_sd3

with quiet_imports():
    from diffusionkit.mlx import model_io
    from diffusionkit.mlx.config import MMDiTConfig, PositionalEncoding
    from diffusionkit.mlx.sampler import FluxSampler, ModelSamplingDiscreteFlow

DType = Literal["float32", "float16", "bfloat16"]
HIDDEN, HEADS, TEXT, POOLED, LATENT, TOKENS = 128, 2, 96, 64, 8, 7
MAX_RESOLUTION = 16
GUIDANCE = 3.5

_COMMON: dict[str, Any] = {
    "num_heads": HEADS,
    "hidden_size_override": HIDDEN,
    "pooled_text_embed_dim": POOLED,
    "token_level_text_embed_dim": TEXT,
    "low_memory_mode": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A small model of one publisher's architecture."""

    name: str
    model_id: str
    config: MMDiTConfig
    """With the dtypes that DiffusionKit's own configuration of that model has."""
    half: DType
    """The 16-bit dtype that DiffusionKit loads it in."""
    guidance: float | None = None

    @property
    def is_flux(self) -> bool:
        """Rotary positions and unified blocks."""
        return self.config.depth_unified > 0


def _sd3(name: str, model_id: str, *, depth: int, dtype: mx.Dtype, use_qk_norm: bool) -> Case:
    config = MMDiTConfig(
        **_COMMON,
        depth_multimodal=depth,
        max_latent_resolution=MAX_RESOLUTION,
        use_qk_norm=use_qk_norm,
        dtype=dtype,
        float16_dtype=dtype,
    )
    return Case(name=name, model_id=model_id, config=config, half="float16")


def _flux(name: str, model_id: str, *, depth: int, guidance: float | None) -> Case:
    config = MMDiTConfig(
        **_COMMON,
        depth_multimodal=depth,
        depth_unified=depth,
        patchify_via_reshape=True,
        pos_embed_type=PositionalEncoding.PreSDPARope,
        rope_axes_dim=(16, 24, 24),
        use_qk_norm=True,
        guidance_embed=guidance is not None,
    )
    return Case(name=name, model_id=model_id, config=config, half="bfloat16", guidance=guidance)


def cases(depth: int = 3) -> list[Case]:
    """SD3 medium, SD3.5-large, FLUX.1-schnell and FLUX.1-dev, of so many blocks (FLUX: of each kind)."""
    sd3, flux = "argmaxinc/mlx-stable-diffusion", "argmaxinc/mlx-FLUX.1"
    return [
        _sd3("SD3 medium", f"{sd3}-3-medium", depth=depth, dtype=mx.float16, use_qk_norm=False),
        _sd3("SD3.5-large", f"{sd3}-3.5-large", depth=depth, dtype=mx.bfloat16, use_qk_norm=True),
        _flux("FLUX.1-schnell", f"{flux}-schnell", depth=depth, guidance=None),
        _flux("FLUX.1-dev", f"{flux}-dev", depth=depth, guidance=GUIDANCE),
    ]


def write_checkpoint(case: Case, path: Path, *, key_biases: bool = True, seed: int = 0) -> None:
    """Write random weights in the publisher's layout, float32 that bfloat16 and float16 hold exactly.

    Biases have an rms of 0.1 (adaLN: 0.5); `key_biases=False` sets those of the keys to zero.
    """
    parameters = empty_parameters(PublishedMMDiT(case.config))
    shapes = mmdit_to_flux(parameters) if case.is_flux else mmdit_to_sd3(parameters)
    rng = np.random.default_rng(seed)
    weights = {name: _random(rng, name, empty.shape) for name, empty in shapes.items()}
    for name in weights:
        if not key_biases and name.endswith(("qkv.bias", "linear1.bias")):
            weights[name][HIDDEN : 2 * HIDDEN] = 0
    mx.save_safetensors(str(path), weights)


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> mx.array:
    values = rng.standard_normal(shape)
    if len(shape) == 1:
        is_norm = name.endswith((".scale", "ln_q.weight", "ln_k.weight"))
        # Gates (adaLN) far from zero, so that every layer shows in the output.
        is_gate = "adaLN" in name or "_mod." in name or ".modulation." in name
        scaled = 1 + 0.1 * values if is_norm else (0.5 if is_gate else 0.1) * values
    else:
        scaled = values * (0.5 if name.endswith("pos_embed") else 1 / np.sqrt(np.prod(shape[1:])))
    # Seven bits after the point: no subnormals in float16.
    return mx.array(scaled.astype(np.float32)).astype(mx.bfloat16).astype(mx.float16).astype(mx.float32)


def load_mlx(case: Case, path: Path, dtype: DType, reference: Reference) -> Any:
    """The transformer in `dtype`, by DiffusionKit's own loader."""
    files = ModelFiles(case.model_id, "float16", path, None, reference)
    half = dtype != "float32"
    # DiffusionKit's configuration of dev is that of schnell.
    config = case.config if reference == "published" else replace(case.config, guidance_embed=False)
    # DiffusionKit's configurations say 16 bits; a float32 run of it would say float32.
    config = config if half else replace(config, dtype=mx.float32, float16_dtype=mx.float32)
    load = model_io.load_flux if case.is_flux else model_io.load_mmdit
    with (
        files.visible(),
        patch.object(model_io, "_CONFIG", {case.model_id: config}),
        patch.object(model_io, "FLUX_SCHNELL", config),
        patch.object(model_io, "_FLOAT16", getattr(mx, case.half)),
        patch.object(model_io, "hf_hub_download", lambda repo, name: str(path)),
    ):
        mmdit = load(key=case.model_id, model_key=case.model_id, float16=half, low_memory_mode=False)
    if reference == "published":
        mmdit.set_guidance(case.guidance, getattr(mx, dtype))
    mx.eval(mmdit.parameters())
    return mmdit


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One input of the transformer, float32 values that the dtype holds exactly."""

    x: Array
    """(B, H, W, C)."""
    text: Array
    """(B, T, D)."""
    pooled: Array
    """(B, P)."""


def new_question(dtype: DType, *, rows: int = 2, seed: int = 1) -> Question:
    """Random latents, text and pooled text."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Array:
        values = mx.array(rng.standard_normal(shape).astype(np.float32)).astype(getattr(mx, dtype))
        return np.array(values.astype(mx.float32))

    return Question(
        x=draw(rows, LATENT, LATENT, 16), text=draw(rows, TOKENS, TEXT), pooled=draw(rows, POOLED)
    )


def timestep_of(case: Case, sigma: float, dtype: DType, reference: Reference) -> float:
    """The timestep that a sampler of that reference gives the transformer."""
    sampler, level = (FluxSampler if case.is_flux else ModelSamplingDiscreteFlow)(), mx.array([sigma])
    activation = getattr(mx, dtype)
    if reference == "published":
        return float(published_timesteps(sampler, level, activation).item())
    return float(sampler.timestep(level).astype(activation).item())


def mlx_velocity(mmdit: Any, question: Question, timestep: float, dtype: DType) -> Array:
    """(B, H, W, C) float32."""
    rows, activation = len(question.x), getattr(mx, dtype)
    x, text, pooled = (
        mx.array(values).astype(activation) for values in (question.x, question.text, question.pooled)
    )
    set_modulation(mmdit, pooled, mx.array([timestep]))
    velocity = mmdit(x, text[:, :, None, :], mx.full((rows,), timestep))
    return np.array(velocity.astype(mx.float32))
