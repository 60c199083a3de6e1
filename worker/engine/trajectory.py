"""Draws an image step by step and keeps every step."""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from shared.errors import OverflowsError
from shared.layout.npz import Array
from worker.families.family import Conditioning, Family


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """The N denoising steps of one image."""

    x: list[mx.array]
    """N + 1 latents (1, H, W, C) float32: entering each step, then the final one."""
    sigmas: mx.array
    """(N + 1,) float32."""
    timesteps: mx.array
    """(N + 1,): the timestep that the transformer is given for each sigma."""
    conditioning: Conditioning
    """Arrays (B, ...) in activation dtype; B is 2 with CFG (text, negative), else 1."""


def denoise(
    family: Family,
    prompt: str,
    *,
    seed: int,
    num_steps: int,
    cfg_weight: float,
    latent_size: tuple[int, int],
    check: Callable[[str], None] = lambda progress: None,
) -> Trajectory:
    """Draw one image and keep every step.

    Euler steps (Algorithm 2 of Karras et al. 2022, without churn).

    Raises:
        OverflowsError: the model's output is not finite.
    """
    conditioning = family.encode(prompt, cfg_weight)
    sigmas = family.sigmas(num_steps)

    def direction(x_t: mx.array, sigma: mx.array) -> mx.array:
        return family.direction(x_t, sigma, conditioning, cfg_weight)

    x = follow(direction, family.first_latent(seed, sigmas, latent_size), sigmas, family.dtype, check)
    return Trajectory(x=x, sigmas=sigmas, timesteps=family.timesteps(sigmas), conditioning=conditioning)


def follow(
    direction: Callable[[mx.array, mx.array], mx.array],
    x_t: mx.array,
    sigmas: mx.array,
    dtype: mx.Dtype,
    check: Callable[[str], None] = lambda progress: None,
) -> list[mx.array]:
    """Take the Euler steps from a first latent.

    Args:
        direction: from x_t and its sigma, (), to the guided velocity (1, H, W, C) float32.
        x_t: (1, H, W, C) float32.
        sigmas: (N + 1,) float32.
        dtype: of activations, for the message.
        check: told the progress before each step.

    Returns:
        N + 1 latents, the first included.

    Raises:
        OverflowsError: a latent is not finite.
    """
    x = [x_t]
    steps = len(sigmas) - 1
    for i in range(steps):
        check(f"step {i + 1}/{steps}")
        x_t = x_t + direction(x_t, sigmas[i]) * (sigmas[i + 1] - sigmas[i])
        if not mx.isfinite(x_t).all().item():
            name = str(dtype).removeprefix("mlx.core.")
            raise OverflowsError(f"step {i + 1}: the latent is no longer finite; this model overflows {name}")
        x.append(x_t)
    return x


def to_numpy(array: mx.array) -> Array:
    """Convert to numpy; bfloat16, which numpy lacks, becomes float32."""
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
