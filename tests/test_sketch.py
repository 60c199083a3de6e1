"""The judges: finite differences for a single probe, the exact engine for the mean over probes."""

from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from benchmarks.random_mmdit import as_family, draw_samples, flux_config, random_pipeline, sd3_config
from shared.errors import RunMismatchError
from shared.kinds.sketch import SketchShard
from worker.engine.batches import Batch, batch_forward, guided_velocity
from worker.engine.exact import ExactEngine
from worker.engine.layers import get_weight
from worker.engine.memory import memory_of_weights
from worker.engine.quantize import quantize_layer, swapped
from worker.engine.sketch import SketchEngine, probe_signs
from worker.families.diffusionkit.layers import linear_layers

GROUP, BITS = 32, (2, 4, 8)
CASES = {"sd3": (sd3_config, 4.0), "flux": (flux_config, 0.0)}
DEAD = "multimodal_transformer_blocks.1.text_transformer_block.attn.q_proj"


@cache
def case(name):
    config, cfg_weight = CASES[name]
    pipeline = random_pipeline(config())
    samples = draw_samples(pipeline, cfg_weight=cfg_weight, latent_size=(4, 4), text_tokens=3)
    return pipeline, samples, cfg_weight


def new_engine(name, **options):
    pipeline, samples, cfg_weight = case(name)
    return SketchEngine(as_family(pipeline), samples, cfg_weight, GROUP, BITS, **options)


def paths(name):
    return [layer.path for layer in linear_layers(case(name)[0].mmdit)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_product_is_the_directional_derivative_of_the_probed_output(name):
    pipeline, samples, cfg_weight = case(name)
    mmdit, rows = pipeline.mmdit, 2 if cfg_weight else 1
    batch = Batch(index=0, rows=np.array([1]))
    forward = batch_forward(as_family(pipeline), samples, batch, rows=rows, dtype=mx.float32)
    shard = new_engine(name).measure(1, 0, 2)
    r = np.array(probe_signs(1, 0, 2, samples.x.shape[1:]), np.float64)

    def velocity():
        return np.array(guided_velocity(forward(), cfg_weight), np.float64)

    for index, layer in enumerate(paths(name)):
        weight = get_weight(mmdit, layer)
        dw = quantize_layer(mmdit, layer, bits=4, group_size=GROUP).weight - weight
        with swapped(mmdit, layer, weight + dw):
            ahead = velocity()
        with swapped(mmdit, layer, weight - dw):
            behind = velocity()
        expected = (r * (ahead - behind) / 2).sum(axis=(1, 2, 3))
        # What is left is of third order in dW, and float32's rounding of the two velocities.
        atol = 2e-2 * np.abs(ahead - behind).max() + 1e-4
        np.testing.assert_allclose(shard.products[index, 1], expected, rtol=2e-2, atol=atol, err_msg=layer)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_mean_square_over_probes_is_the_exact_squared_error(name):
    pipeline, samples, cfg_weight = case(name)
    exact, sketch, probes = ExactEngine(as_family(pipeline), samples, cfg_weight, GROUP), new_engine(name), 64
    shards = [sketch.measure(sample, 0, probes) for sample in range(len(samples))]
    squares = np.stack([(shard.products**2).mean(axis=-1) for shard in shards])
    for index, layer in enumerate(paths(name)):
        expected = exact.measure(layer, 8).squared_error
        spread = np.sqrt(2 / probes * (expected**2).sum())
        assert abs(squares[:, index, 2].sum() - expected.sum()) <= 5 * spread + 1e-9, layer
    np.testing.assert_allclose(
        [shard.squared_reference for shard in shards],
        exact.measure("final_layer.linear", 8).squared_reference,
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", CASES)
def test_memory_decides_how_not_what(name):
    ample = new_engine(name).measure(0, 0, 4)
    scarce = new_engine(name, memory_limit=memory_of_weights(case(name)[0].mmdit) + 1).measure(0, 0, 4)
    scale = np.abs(ample.products).max(axis=-1, keepdims=True) + 1e-9
    np.testing.assert_allclose(scarce.products / scale, ample.products / scale, atol=1e-3)
    assert np.array_equal(scarce.weight_squared_error, ample.weight_squared_error)


def test_only_a_layer_that_no_gradient_reaches_is_dead():
    shard = new_engine("sd3").measure(0, 0, 1)
    assert [path for path, dead in zip(paths("sd3"), shard.dead, strict=True) if dead] == [DEAD]
    assert not shard.products[shard.dead].any()
    assert not new_engine("flux").measure(0, 0, 1).dead.any()


def test_probes_are_the_same_everywhere_and_differ_by_sample_and_group():
    def signs(*seed):
        return np.array(probe_signs(*seed, 3, (8, 8, 2)))

    assert set(np.unique(signs(0, 0)).tolist()) == {-1.0, 1.0}
    assert np.array_equal(signs(1, 2), signs(1, 2))
    assert not np.array_equal(signs(1, 2), signs(2, 1))
    assert not np.array_equal(signs(0, 0)[0], signs(0, 0)[1])


def test_a_shard_knows_its_sample_and_survives_its_bytes():
    pipeline, samples, _ = case("sd3")
    shard = new_engine("sd3").measure(4, 0, 2)
    assert (shard.image_index, shard.step_index) == (1, 1)
    assert shard.bits.tolist() == list(BITS)
    assert shard.products.shape == (len(paths("sd3")), 3, 2)
    assert shard.output_size == samples.x[0].size
    candidate = quantize_layer(pipeline.mmdit, paths("sd3")[0], bits=4, group_size=GROUP)
    assert shard.weight_squared_error[0, 1] == candidate.squared_error
    assert shard.bits_per_weight[0].tolist() == [3, 5, 9]
    again = SketchShard.from_bytes(shard.to_bytes())
    assert all(np.array_equal(getattr(again, name), getattr(shard, name)) for name in shard._layout)


def test_what_the_group_size_does_not_divide_is_marked_and_the_rest_is_sketched():
    config = sd3_config(text_dim=96)
    pipeline = random_pipeline(config)
    samples = draw_samples(pipeline, latent_size=(4, 4))
    shard = SketchEngine(as_family(pipeline), samples, 4.0, 64, BITS).measure(0, 0, 1)
    layers = [layer.path for layer in linear_layers(pipeline.mmdit)]
    assert [p for p, ok in zip(layers, shard.measurable, strict=True) if not ok] == ["context_embedder"]
    assert not shard.products[~shard.measurable].any()
    assert shard.products[shard.measurable].any()


def test_weights_come_back_and_nothing_traced_stays_behind():
    pipeline, _, _ = case("sd3")
    before = {name: np.array(value) for name, value in tree_flatten(pipeline.mmdit.parameters())}
    told = []

    def stop(progress):
        told.append(progress)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        new_engine("sd3").measure(0, 0, 1, stop)
    assert told == ["sketch of sample 0: 7 of 7 blocks to go", "sketch of sample 0: 6 of 7 blocks to go"]
    new_engine("sd3").measure(0, 0, 1)
    after = {name: np.array(value) for name, value in tree_flatten(pipeline.mmdit.parameters())}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_half_precision_models_are_differentiated_in_float32():
    _, samples, cfg_weight = case("sd3")
    pipeline = random_pipeline(sd3_config())
    pipeline.mmdit.set_dtype(mx.float16)
    pipeline.activation_dtype = mx.float16
    half = SketchEngine(as_family(pipeline), samples, cfg_weight, GROUP, BITS).measure(0, 0, 2)
    full = new_engine("sd3").measure(0, 0, 2)
    assert half.bits_per_weight[0].tolist() == [3, 5, 9]
    scale = np.abs(full.products[:, 0]).max(axis=-1) + 1e-6
    assert np.median(np.abs(half.products - full.products)[:, 0].max(axis=-1) / scale) < 0.1


def test_another_model_is_refused_in_words():
    _, samples, cfg_weight = case("sd3")
    other = random_pipeline(sd3_config(), seed=1)
    with pytest.raises(RunMismatchError, match="does not reproduce"):
        SketchEngine(as_family(other), samples, cfg_weight, GROUP, BITS).measure(0, 0, 1)
