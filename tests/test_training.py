"""The training of the demo model: what can be checked without training it."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from training.diffusion import SHIFT, shifted
from training.grammar import sample_scenes
from training.optimiser import Recipe, TrainingState, cosine, plateau
from training.render import render_all
from training.vae import LATENT_FORMAT, Autoencoder, as_input, scale_latents
from worker.families.diffusionkit.quiet_imports import quiet_imports

with quiet_imports():
    from diffusionkit.mlx.sampler import ModelSamplingDiscreteFlow

RECIPE = Recipe(steps=8, peak=0.1, warmup=2, schedule=cosine, ema=0.9)


def train(folder: Path, stop: int) -> np.ndarray:
    """Averaged weights of a little regression after `stop` steps, resumed from `folder` where it can be."""
    mx.random.seed(7)
    model = nn.Linear(3, 2)
    state = TrainingState(model, folder, RECIPE)
    state.resume()
    gradient = nn.value_and_grad(model, lambda m, x, y: mx.mean((m(x) - y) ** 2))
    while state.step < stop:
        x = mx.array(np.random.default_rng(state.step).standard_normal((4, 3)).astype(np.float32))
        _, gradients = gradient(model, x, x[:, :2])
        state.update(gradients)
    state.save()
    return np.concatenate([np.array(model.weight), np.array(state.average["weight"])])


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 8)
    train(tmp_path / "parts", 3)
    np.testing.assert_array_equal(train(tmp_path / "parts", 8), whole)
    assert np.abs(whole - train(tmp_path / "short", 3)).max() > 0.01


def test_learning_rate_rises_and_falls() -> None:
    rates = [RECIPE.learning_rate(step) for step in range(8)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[1] == rates[2] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert plateau(0.0) == plateau(0.7) == 1.0
    assert plateau(0.85) == pytest.approx(0.5)
    assert plateau(1.0) == cosine(1.0) == pytest.approx(0.01)


def test_noise_levels_are_spaced_as_the_sampler_spaces_them() -> None:
    sampler = ModelSamplingDiscreteFlow(shift=SHIFT)
    steps = np.array([1.0, 250.0, 999.0])
    expected = np.array(sampler.sigma(mx.array(steps)))
    np.testing.assert_allclose(shifted(steps / 1000), expected, rtol=1e-5)


def test_scaling_latents_leaves_the_picture_as_it_was() -> None:
    mx.random.seed(1)
    model = Autoencoder()
    scenes = sample_scenes(4, seed=0, held_out=False)
    pictures = as_input(render_all(scenes, seed=0))
    noise_before = mx.exp(0.5 * model.encoder(pictures).split(2, axis=-1)[1])
    before = model.decoder(model.encoder(pictures).split(2, axis=-1)[0])
    scale_latents(model, scenes, seed=0)
    mean, logvar = model.encoder(pictures).split(2, axis=-1)
    np.testing.assert_allclose(np.array(model.decoder(mean)), np.array(before), atol=1e-4)
    assert mx.std(LATENT_FORMAT.process_in(mean)).item() == pytest.approx(1.0, abs=1e-3)
    # Mean and noise grow by one factor.
    grown = np.array(mx.exp(0.5 * logvar) / noise_before)
    assert grown.std() < 1e-3 * grown.mean()
