"""Trains the VAE's decoder on, with the encoder as it is: latents stay what the transformer learns."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn

from training.grammar import sample_scenes
from training.optimiser import Recipe, TrainingState, cosine
from training.render import IMAGE_SIZE
from training.vae import LATENT_FORMAT, Autoencoder, picture_loss, training_batch
from worker.families.diffusionkit.quiet_imports import quiet_imports

with quiet_imports():
    from diffusionkit.mlx.vae import VAEDecoder

RECIPE = Recipe(steps=1000, peak=1.5e-3, warmup=30, schedule=cosine, ema=0.99)
BATCH = 8
LATENT_NOISE = 0.1
"""In units of the transformer's latents: what it draws is never quite what the encoder says."""


def decoder_loss(
    decoder: VAEDecoder, latents: mx.array, pictures: mx.array, backgrounds: mx.array
) -> tuple[mx.array, mx.array]:
    """Loss and mean squared error of (B, H, W, 3) pictures in [-1, 1] from their (B, h, w, 16) latents."""
    decoded = decoder(latents)
    return picture_loss(decoded, pictures, backgrounds), mx.mean((decoded - pictures) ** 2)


def train_decoder(folder: Path, vae: Autoencoder, *, seed: int, steps: int = RECIPE.steps) -> None:
    """Train, or go on with, the decoder of `vae`, and leave it with its averaged weights."""
    state = TrainingState(vae.decoder, folder, replace(RECIPE, steps=steps))
    if state.resume():
        print(f"decoder: going on from step {state.step}")
    scenes = sample_scenes(20_000, seed=seed + 3, held_out=False)
    gradient = nn.value_and_grad(vae.decoder, decoder_loss)
    while state.step < steps:
        rng = np.random.default_rng([seed, 2, state.step])
        chosen = [scenes[i] for i in rng.integers(len(scenes), size=BATCH)]
        pictures, backgrounds, noise = training_batch(chosen, rng, IMAGE_SIZE)
        mean, _ = vae.encoder(pictures).split(2, axis=-1)
        latents = mx.stop_gradient(mean + LATENT_NOISE / LATENT_FORMAT.scale_factor * noise)
        (loss, squared), gradients = gradient(vae.decoder, latents, pictures, backgrounds)
        state.update(gradients)
        if state.step % 50 == 0:
            print(f"decoder: step {state.step} loss {loss.item():.4f} mse {squared.item():.5f}", flush=True)
        if state.step % 100 == 0 or state.step == steps:
            state.save()
    vae.decoder.update(state.average)
