"""The shipped demo model: small enough for git, loaded by DiffusionKit's loaders, and able to draw."""

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.settings import run_settings
from shared.models import model_spec
from training.export import MAX_BYTES
from training.grammar import sample_scenes
from training.judge import find_things, judge
from training.painter import Painter, new_tokenizer, tokenize
from worker.families.diffusionkit.loading import load_model
from worker.families.diffusionkit.small_models import DEMO, demo_folder
from worker.families.diffusionkit.vocabulary import byte_pair_merges, vocabulary

SPEC = model_spec("demo")
SETTINGS = run_settings("demo", num_steps=8)


def test_files_fit_into_the_repository() -> None:
    files = [path for path in demo_folder().rglob("*") if path.is_file()]
    assert len(files) == 10
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


@pytest.mark.slow
def test_draws_two_things_in_their_colours_and_places() -> None:
    pipeline = load_model(SETTINGS).pipeline
    scene = next(s for s in sample_scenes(9, seed=1, held_out=True) if len(s.things) == 2)
    text, pooled = pipeline.encode_text(scene.prompt, SETTINGS.cfg_weight)
    latent, _ = pipeline.denoise_latents(
        text, pooled, SETTINGS.num_steps, SETTINGS.cfg_weight, SETTINGS.latent_size, seed=0
    )
    picture = np.array(pipeline.decode_latents_to_image(latent))[0]
    verdict = judge(picture, scene)
    assert all(verdict.colours), find_things(picture)
    assert verdict.side, find_things(picture)


def test_training_computes_what_diffusionkit_computes() -> None:
    """The shortcuts of `Painter` (fewer columns, one zero token for all) leave the function unchanged."""
    pipeline = load_model(SETTINGS).pipeline
    painter = Painter()
    for part in ("clip_l", "clip_g"):
        getattr(painter, part).update(getattr(pipeline, part).parameters())
    weights = pipeline.mmdit.parameters()
    wide = weights["context_embedder"]["weight"]
    assert mx.abs(wide[:, sum(DEMO.clip_widths) :]).max().item() == 0
    weights["context_embedder"]["weight"] = wide[:, : sum(DEMO.clip_widths)]
    painter.mmdit.update(weights)
    prompt, x_t = "a small red cross", mx.random.normal((2, 8, 8, 16), key=mx.random.key(1))
    ours = painter(x_t, mx.full((2,), 0.5), *tokenize(new_tokenizer(), [prompt, ""]))
    text, pooled = pipeline.encode_text(prompt, 7.5, "")
    pipeline.mmdit.cache_modulation_params(pooled, mx.array([500.0]))
    theirs = pipeline.mmdit(x_t, mx.expand_dims(text, 2), mx.full((2,), 500.0))
    np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=2e-4)


def test_training_tokenizes_as_diffusionkit_does() -> None:
    pipeline = load_model(SETTINGS).pipeline
    prompt = sample_scenes(1, seed=0, held_out=False)[0].prompt
    ours = tokenize(new_tokenizer(), [prompt, ""])
    theirs = (pipeline._tokenize(t, prompt, "") for t in (pipeline.tokenizer_l, pipeline.tokenizer_g))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.array(mine), np.array(other))


def test_shipped_vocabulary_is_the_one_in_the_code() -> None:
    assert load_model(SETTINGS).pipeline.tokenizer_l.vocab == vocabulary(byte_pair_merges())
