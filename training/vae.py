"""Trains the demo model's VAE: DiffusionKit's encoder and decoder, on pictures of the training scenes."""

import math
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn

from training.grammar import Scene, sample_scenes
from training.optimiser import Recipe, TrainingState, cosine
from training.render import IMAGE_SIZE, Array, render_all
from worker.families.diffusionkit.quiet_imports import quiet_imports

with quiet_imports():
    from diffusionkit.mlx import SD3LatentFormat
    from diffusionkit.mlx.vae import Attention, ResnetBlock2D, VAEDecoder, VAEEncoder

    from worker.families.diffusionkit.small_models import DEMO

RECIPE = Recipe(steps=2000, peak=1.5e-3, warmup=30, schedule=cosine, ema=0.99)
CROPPED_SHARE = 0.75
"""Of the steps, at first: they see a quarter of each picture, with things in it more often than not."""
CROP = 32
BATCH = 8
KL_WEIGHT = 1e-3
THING_WEIGHT = 5.0
HUE_WEIGHT = 2.0
LATENT_FORMAT = SD3LatentFormat()


class Autoencoder(nn.Module):
    """Both halves, so that one optimizer trains them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = VAEEncoder(**vars(DEMO.vae_encoder_config()))
        self.decoder = VAEDecoder(**vars(DEMO.vae_decoder_config()))
        self._begin_linear()

    def _begin_linear(self) -> None:
        """Keep variance along the skip path, and start all branches at zero.

        From MLX's own start, biases drown the picture on its way, and nothing but the background is learnt
        for hundreds of steps.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight = module.weight * math.sqrt(3)
                module.bias = mx.zeros_like(module.bias)
        for module in self.modules():
            if isinstance(module, ResnetBlock2D):
                module.conv2.weight = mx.zeros_like(module.conv2.weight)
            elif isinstance(module, Attention):
                module.out_proj.weight = mx.zeros_like(module.out_proj.weight)
        # Nearly no noise at first.
        last = self.encoder.conv_out
        means = last.bias.size // 2
        last.bias = mx.concatenate([mx.zeros((means,)), mx.full((means,), -5.0)])
        last.weight = mx.concatenate([last.weight[:means], 0.1 * last.weight[means:]])


def vae_loss(
    model: Autoencoder, pictures: mx.array, backgrounds: mx.array, noise: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Loss, mean squared error and KL of (B, H, W, 3) pictures on (B, 1, 1, 3) colours, in [-1, 1].

    Kingma and Welling 2013, https://arxiv.org/abs/1312.6114: appendix B gives the KL term.
    """
    mean, logvar = model.encoder(pictures).split(2, axis=-1)
    logvar = mx.clip(logvar, -30.0, 20.0)
    decoded = model.decoder(mean + mx.exp(0.5 * logvar) * noise)
    kl = 0.5 * mx.mean(mean**2 + mx.exp(logvar) - 1 - logvar)
    error = mx.mean((decoded - pictures) ** 2)
    return picture_loss(decoded, pictures, backgrounds) + KL_WEIGHT * kl, error, kl


def picture_loss(decoded: mx.array, pictures: mx.array, backgrounds: mx.array) -> mx.array:
    """Squared and absolute error. Things cover a tenth, brightness is most: both are weighed against."""
    error = decoded - pictures
    thing = mx.max(mx.abs(pictures - backgrounds), axis=-1, keepdims=True) > 0.1
    weight = 1.0 + THING_WEIGHT * thing.astype(mx.float32)
    hue = error - mx.mean(error, axis=-1, keepdims=True)
    return mx.mean(weight * (error**2 + HUE_WEIGHT * hue**2 + 0.2 * mx.abs(error)))


def training_batch(scenes: list[Scene], rng: np.random.Generator, size: int) -> tuple[mx.array, ...]:
    """Pictures cut to `size`, their background colours, and noise for their latents."""
    pictures = as_input(render_all(scenes, seed=int(rng.integers(2**31))))
    backgrounds = pictures[:, :1, :1]
    if size < IMAGE_SIZE:
        # Up to a quarter off the middle: things stand around it.
        low, high = IMAGE_SIZE // 8 - 4, IMAGE_SIZE - size - IMAGE_SIZE // 8 + 4
        cuts = [(p, *rng.integers(low, high + 1, 2)) for p in pictures]
        pictures = mx.stack([p[y : y + size, x : x + size] for p, y, x in cuts])
    noise = rng.standard_normal((len(scenes), size // 8, size // 8, 16)).astype(np.float32)
    return pictures, backgrounds, mx.array(noise)


def as_input(pictures: Array) -> mx.array:
    """uint8 pictures in the range that the VAE works in."""
    return mx.array(pictures.astype(np.float32) / 127.5 - 1)


def train_vae(folder: Path, *, seed: int, steps: int = RECIPE.steps) -> Autoencoder:
    """Train, or go on with, the VAE; returns it with its averaged weights, scaled."""
    mx.random.seed(seed)
    model = Autoencoder()
    state = TrainingState(model, folder, replace(RECIPE, steps=steps))
    if state.resume():
        print(f"vae: going on from step {state.step}")
    scenes = sample_scenes(20_000, seed=seed, held_out=False)
    gradient = nn.value_and_grad(model, vae_loss)
    while state.step < steps:
        step = state.step
        rng = np.random.default_rng([seed, step])
        chosen = [scenes[i] for i in rng.integers(len(scenes), size=BATCH)]
        size = CROP if step < CROPPED_SHARE * steps else IMAGE_SIZE
        (loss, squared, kl), gradients = gradient(model, *training_batch(chosen, rng, size))
        norm = state.update(gradients)
        if step % 40 == 0 or step == steps - 1:
            values = f"loss {loss.item():.4f} mse {squared.item():.5f} kl {kl.item():.3f}"
            print(f"vae: step {step} {values} gradient {norm:.2f}", flush=True)
        if state.step % 100 == 0 or state.step == steps:
            state.save()
    model.update(state.average)
    scale_latents(model, scenes[:256], seed)
    return model


def scale_latents(model: Autoencoder, scenes: list[Scene], seed: int) -> None:
    """Give latents the spread that SD3's latent format expects, by weights alone.

    The encoder's last and the decoder's first convolution take up one common factor.
    """
    mean, _ = model.encoder(as_input(render_all(scenes, seed=seed))).split(2, axis=-1)
    factor = 1 / (float(mx.std(mean).item()) * LATENT_FORMAT.scale_factor)
    channels = mean.shape[-1]
    last, first = model.encoder.conv_out, model.decoder.conv_in
    scaling = mx.concatenate([mx.full((channels,), factor), mx.ones((channels,))])
    last.weight = last.weight * scaling[:, None, None, None]
    shift = mx.concatenate([mx.zeros((channels,)), mx.full((channels,), 2 * float(np.log(factor)))])
    last.bias = last.bias * scaling + shift
    first.weight = first.weight / factor
    mx.eval(model.parameters())
