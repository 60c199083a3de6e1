"""Trains text encoders and transformer together, by rectified flow in the trained VAE's latents.

Liu et al. 2022, https://arxiv.org/abs/2209.03003; timesteps as in Esser et al. 2024,
https://arxiv.org/abs/2403.03206, section 5.3.2 (shift).
"""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn

from training.grammar import sample_scenes
from training.optimiser import Recipe, TrainingState, plateau
from training.painter import Painter, new_tokenizer, tokenize
from training.render import Array, render_all
from training.vae import LATENT_FORMAT, Autoencoder, as_input

RECIPE = Recipe(steps=3200, peak=1.2e-3, warmup=100, schedule=plateau, ema=0.999)
BATCH = 32
PICTURES = 16_000
DROPPED_PROMPTS = 0.1
"""Share of prompts replaced by the empty one (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598)."""
SHIFT = 3.0


def encode_pictures(vae: Autoencoder, folder: Path, *, seed: int) -> tuple[Array, list[str]]:
    """(n, 8, 8, 16) float16 latents as the transformer sees them, and their prompts; kept in `folder`."""
    scenes = sample_scenes(PICTURES, seed=seed + 1, held_out=False)
    prompts = [scene.prompt for scene in scenes]
    path = folder / "latents.npy"
    if path.exists():
        return np.load(path), prompts
    latents = []
    for start in range(0, PICTURES, 100):
        pictures = as_input(render_all(scenes[start : start + 100], seed=seed + start))
        mean, _ = vae.encoder(pictures).split(2, axis=-1)
        latents.append(np.array(LATENT_FORMAT.process_in(mean)).astype(np.float16))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(path, np.concatenate(latents))
    return np.concatenate(latents), prompts


def flow_loss(
    model: Painter, x_0: mx.array, noise: mx.array, sigma: mx.array, tokens_l: mx.array, tokens_g: mx.array
) -> mx.array:
    """Mean squared error of the velocity `noise - x_0` at `x_t = (1 - sigma) x_0 + sigma noise`."""
    level = sigma[:, None, None, None]
    velocity = model((1 - level) * x_0 + level * noise, sigma, tokens_l, tokens_g)
    return mx.mean((velocity - (noise - x_0)) ** 2)


def shifted(u: Array) -> Array:
    """Noise levels of uniform draws in [0, 1], as the sampler's `shift` spaces them."""
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def train_diffusion(folder: Path, vae: Autoencoder, *, seed: int, steps: int = RECIPE.steps) -> Painter:
    """Train, or go on with, the model; returns it with its averaged weights."""
    latents, prompts = encode_pictures(vae, folder, seed=seed)
    tokens = tokenize(new_tokenizer(), [*prompts, ""])
    mx.random.seed(seed + 2)
    model = Painter()
    state = TrainingState(model, folder, replace(RECIPE, steps=steps))
    if state.resume():
        print(f"diffusion: going on from step {state.step}")
    gradient = nn.value_and_grad(model, flow_loss)
    losses: list[float] = []
    while state.step < steps:
        rng = np.random.default_rng([seed, 1, state.step])
        rows = rng.integers(len(latents), size=BATCH)
        noise = mx.array(rng.standard_normal((BATCH, *latents.shape[1:])).astype(np.float32))
        # One level from each of BATCH equal parts of [0, 1]: less noise in the loss.
        sigma = mx.array(shifted((np.arange(BATCH) + rng.random(BATCH)) / BATCH).astype(np.float32))
        said = mx.array(np.where(rng.random(BATCH) < DROPPED_PROMPTS, len(prompts), rows))
        x_0 = mx.array(latents[rows].astype(np.float32))
        loss, gradients = gradient(model, x_0, noise, sigma, tokens[0][said], tokens[1][said])
        norm = state.update(gradients)
        losses.append(float(loss.item()))
        if state.step % 50 == 0:
            recent = float(np.mean(losses[-50:]))
            print(f"diffusion: step {state.step} loss {recent:.4f} gradient {norm:.2f}", flush=True)
        if state.step % 100 == 0 or state.step == steps:
            state.save()
    model.update(state.average)
    return model
