"""The judge is brute force in float32: weights widened, a candidate swapped, DiffusionKit's own denoiser."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.random_mmdit import (
    as_family,
    draw_samples,
    flux_config,
    plain_denoiser,
    random_pipeline,
    sd3_config,
)
from worker.engine.exact import ExactEngine
from worker.engine.layers import get_weight, set_weight
from worker.engine.noise import change_last_bit
from worker.engine.quantize import quantize_layer

GROUP = 32
DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}
CASES = {"sd3": (sd3_config, 4.0), "flux": (flux_config, 0.0)}
BLOCK = "multimodal_transformer_blocks.0.image_transformer_block"
LAYERS = ("t_embedder.mlp.layers.2", "x_embedder.proj", f"{BLOCK}.attn.v_proj", f"{BLOCK}.mlp.fc1")
DEAD = "multimodal_transformer_blocks.1.text_transformer_block.attn.q_proj"


def stored_as(name, dtype):
    """A model whose weights are `dtype`, and samples that it could have drawn."""
    config, cfg_weight = CASES[name]
    pipeline = random_pipeline(replace(config(), dtype=dtype))
    samples = draw_samples(pipeline, cfg_weight=cfg_weight, num_steps=2)
    pipeline.mmdit.set_dtype(dtype)
    pipeline.activation_dtype = dtype
    return pipeline, samples, cfg_weight


def brute_force(pipeline, samples, cfg_weight, layer=None, bits=None):
    """Guided velocities (n, ...) float64 of a model whose pipeline is spoilt by it."""
    if layer is not None:
        set_weight(
            pipeline.mmdit, layer, quantize_layer(pipeline.mmdit, layer, bits=bits, group_size=GROUP).weight
        )
    pipeline.mmdit.set_dtype(mx.float32)
    pipeline.activation_dtype = mx.float32
    velocities = []
    for image in range(len(samples.image_index)):
        rows = np.flatnonzero(samples.image == image)
        sigmas = samples.sigma[rows]
        text, pooled = samples.conditioning["conditioning"], samples.conditioning["pooled_conditioning"]
        denoise = plain_denoiser(
            pipeline, mx.array(sigmas), text[image], pooled[image], cfg_weight=cfg_weight
        )
        velocities += [
            np.array(denoise(mx.array(samples.x[[row]]), step, exactly=True)) for step, row in enumerate(rows)
        ]
    return np.concatenate(velocities).astype(np.float64)


def score(error, reference):
    return np.sqrt(error.sum() / reference.sum())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_float32_whatever_the_weights_are_stored_in(name, dtype):
    pipeline, samples, cfg_weight = stored_as(name, DTYPES[dtype])
    engine = ExactEngine(as_family(pipeline), samples, cfg_weight, GROUP)
    v_ref = brute_force(*stored_as(name, DTYPES[dtype]))
    for layer in LAYERS:
        for bits in (2, 8):
            shard = engine.measure(layer, bits)
            v = brute_force(*stored_as(name, DTYPES[dtype]), layer, bits)
            expected = score((v - v_ref) ** 2, v_ref**2)
            found = score(shard.squared_error, shard.squared_reference)
            # The judge rounds, too: by some 1e-8 of the velocity.
            assert found == pytest.approx(expected, rel=1e-4, abs=3e-8), (layer, bits)
            assert get_weight(pipeline.mmdit, layer).dtype == DTYPES[dtype]


def test_the_floor_tells_rounding_from_error_in_each_precision():
    pipeline, samples, cfg_weight = stored_as("sd3", mx.bfloat16)
    wide = ExactEngine(as_family(pipeline), samples, cfg_weight, GROUP).measure(LAYERS[2], 8)
    narrow = ExactEngine(as_family(pipeline), samples, cfg_weight, GROUP, compute="model").measure(
        LAYERS[2], 8
    )
    assert (wide.noise_squared_error > 0).all()
    assert (wide.squared_error > 1000 * wide.noise_squared_error).all()
    # In bfloat16 the same score is rounding, and far too large.
    assert (narrow.squared_error < 4 * narrow.noise_squared_error).all()
    assert (narrow.squared_error > 100 * wide.squared_error).all()
    assert not wide.dead
    assert not narrow.dead


def test_the_floor_does_not_hang_on_the_order_of_jobs():
    pipeline, samples, cfg_weight = stored_as("sd3", mx.float16)
    layers = (*LAYERS, DEAD, "final_layer.linear")
    forth, back = (ExactEngine(as_family(pipeline), samples, cfg_weight, GROUP) for _ in range(2))
    shards = {layer: forth.measure(layer, 4) for layer in layers}
    for layer in reversed(layers):
        shard = back.measure(layer, 4)
        assert shard.noise_squared_error.all()
        assert np.array_equal(shard.noise_squared_error, shards[layer].noise_squared_error)
        assert shard.dead == (layer == DEAD)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_number_moves_to_its_neighbour(dtype):
    largest = mx.finfo(dtype).max
    weight = mx.concatenate([mx.random.normal((1000,)), mx.array([0.0, -0.0, largest, -largest])])
    weight = weight.astype(dtype)
    changed = change_last_bit(weight)
    assert changed.dtype == dtype
    old, new = (np.array(w.astype(mx.float32), np.float64) for w in (weight, changed))
    assert np.isfinite(new).all()
    digits = {mx.float16: 11, mx.bfloat16: 8, mx.float32: 24}[dtype]
    bits = mx.uint32 if dtype == mx.float32 else mx.uint16
    apart = np.array(changed.view(bits), np.int64) - np.array(weight.view(bits), np.int64)
    assert set(np.abs(apart)) == {1}
    assert 300 < (apart > 0).sum() < 700
    np.testing.assert_allclose(new[:1000], old[:1000], rtol=2.0 ** (1 - digits))
    assert mx.array_equal(changed, change_last_bit(weight))
