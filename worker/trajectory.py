"""A denoising trajectory, step by step, on a pipeline that stays whole."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from diffusionkit.mlx import CFGDenoiser, to_d
from PIL import Image

from shared.errors import TaskRefusedError
from shared.layout.npz import Array
from worker.engine.batches import guided_velocity
from worker.model.modulation import clear_modulation, set_modulation
from worker.model.published import PublishedMMDiT, published_timesteps

Velocity = Callable[[mx.array, int], mx.array]
"""Of a latent (1, H, W, C) at a step's number: (1, H, W, C) float32, guided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """What one image's denoising went through, N steps."""

    x: list[mx.array]
    """N + 1 latents (1, H, W, C) float32: entering each step, then the final one."""
    sigmas: mx.array
    """(N + 1,) float32."""
    timesteps: mx.array
    """(N + 1,): of the published pass of SD3 in float32, else in activation dtype."""
    conditioning: mx.array
    """(B, T, D) in activation dtype; B is 2 with CFG (text, negative), else 1."""
    pooled_conditioning: mx.array
    """(B, P) in activation dtype."""


def denoise(
    pipeline: Any,
    prompt: str,
    *,
    seed: int,
    num_steps: int,
    cfg_weight: float,
    latent_size: tuple[int, int],
    check: Callable[[str], None] = lambda progress: None,
) -> Trajectory:
    """Draw one image and keep every step.

    Euler steps (Algorithm 2 of Karras et al. 2022, without churn). With DiffusionKit's own pass the result
    equals its `encode_text` and `denoise_latents` to the last bit: the same operations in the same order.
    Only the modulation is set without emptying the weights that it comes from, so that the next image needs
    nothing from disk. With the published pass a step takes the velocity as the transformer gives it, which
    DiffusionKit first turns into a denoised latent and back.

    Raises:
        TaskRefusedError: the model's output is not finite.
    """
    conditioning, pooled_conditioning = _encode(pipeline, prompt, cfg_weight)

    mx.random.seed(seed)
    x_T = pipeline.get_empty_latent(*latent_size)  # noqa: N806 - the paper's name
    noise = pipeline.get_noise(seed, x_T)
    sigmas = pipeline.get_sigmas(pipeline.sampler, num_steps)
    timesteps = _timesteps(pipeline, sigmas)
    set_modulation(pipeline.mmdit, pooled_conditioning, timesteps[:-1])
    new_velocity = _published if _is_published(pipeline) else _diffusionkits
    velocity = new_velocity(pipeline, sigmas, timesteps, conditioning, cfg_weight)

    x_t = pipeline.sampler.noise_scaling(sigmas[0], noise, x_T, pipeline.max_denoise(sigmas))
    x = [x_t]
    steps = len(sigmas) - 1
    for i in range(steps):
        check(f"step {i + 1}/{steps}")
        dt = sigmas[i + 1] - sigmas[i]
        x_t = x_t + velocity(x_t, i) * dt
        if not mx.isfinite(x_t).all().item():
            dtype = str(pipeline.activation_dtype).removeprefix("mlx.core.")
            raise TaskRefusedError(
                f"step {i + 1}: the latent is no longer finite; this model overflows {dtype}"
            )
        x.append(x_t)
    clear_modulation(pipeline.mmdit)
    return Trajectory(
        x=x,
        sigmas=sigmas,
        timesteps=timesteps,
        conditioning=conditioning,
        pooled_conditioning=pooled_conditioning,
    )


def _is_published(pipeline: Any) -> bool:
    return isinstance(pipeline.mmdit, PublishedMMDiT)


def _timesteps(pipeline: Any, sigmas: mx.array) -> mx.array:
    if _is_published(pipeline):
        return published_timesteps(pipeline.sampler, sigmas, pipeline.activation_dtype)
    timesteps: mx.array = pipeline.sampler.timestep(sigmas).astype(pipeline.activation_dtype)
    return timesteps


def _published(
    pipeline: Any, sigmas: mx.array, timesteps: mx.array, conditioning: mx.array, cfg_weight: float
) -> Velocity:
    rows = len(conditioning)

    def velocity(x_t: mx.array, step: int) -> mx.array:
        x = mx.repeat(x_t, rows, axis=0).astype(pipeline.activation_dtype)
        output = pipeline.mmdit(x, conditioning[:, :, None, :], mx.broadcast_to(timesteps[step], [rows]))
        return guided_velocity(output, cfg_weight)

    return velocity


def _diffusionkits(
    pipeline: Any, sigmas: mx.array, timesteps: mx.array, conditioning: mx.array, cfg_weight: float
) -> Velocity:
    denoiser = CFGDenoiser(pipeline)

    def velocity(x_t: mx.array, step: int) -> mx.array:
        sigma = sigmas[step]
        denoised = denoiser(x_t, timesteps[step], sigma, conditioning=conditioning, cfg_weight=cfg_weight)
        d: mx.array = to_d(x_t, sigma, denoised)
        return d

    return velocity


def _encode(pipeline: Any, prompt: str, cfg_weight: float) -> tuple[mx.array, mx.array]:
    conditioning, pooled_conditioning = pipeline.encode_text(prompt, cfg_weight, "")
    if cfg_weight <= 0:
        # DiffusionKit encodes an empty negative prompt even so, and then fails on two rows of text for
        # one of latents.
        conditioning, pooled_conditioning = conditioning[:1], pooled_conditioning[:1]
    conditioning = conditioning.astype(pipeline.activation_dtype)
    pooled_conditioning = pooled_conditioning.astype(pipeline.activation_dtype)
    mx.eval(conditioning, pooled_conditioning)
    return conditioning, pooled_conditioning


def decode_png(pipeline: Any, x_0: mx.array) -> bytes:
    """Decode a final latent (1, H, W, C) with the VAE and return it as PNG."""
    latent = pipeline.latent_format.process_out(x_0).astype(pipeline.activation_dtype)
    image = pipeline.decode_latents_to_image(latent)[0]
    pixels = np.array((image * 255).astype(mx.uint8))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def to_numpy(array: mx.array) -> Array:
    """As numpy; bfloat16, which numpy lacks, becomes float32."""
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
