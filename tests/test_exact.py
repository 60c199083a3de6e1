"""The judge is brute force: the weight swapped in a fresh model, run by DiffusionKit's own denoiser."""

from dataclasses import replace
from functools import cache

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
from shared.errors import RunMismatchError, TaskRefusedError
from shared.kinds.sensitivity import SensitivityShard
from tests.garbage import collect_garbage
from worker.engine.exact import ExactEngine
from worker.engine.layers import get_weight, set_weight
from worker.engine.memory import memory_of_weights
from worker.engine.pass_memory import PassMemory
from worker.engine.replay import Replay
from worker.families.diffusionkit.layers import linear_layers

GROUP = 32
CASES = {"sd3": (sd3_config, 4.0), "flux": (flux_config, 0.0)}
BLOCK = "multimodal_transformer_blocks.1"
DEAD = f"{BLOCK}.text_transformer_block.attn.q_proj"
LIVE = f"{BLOCK}.image_transformer_block.attn.q_proj"


@cache
def case(name):
    """Samples, and an engine that has measured nothing yet is made of a model equal to theirs."""
    config, cfg_weight = CASES[name]
    return draw_samples(random_pipeline(config()), cfg_weight=cfg_weight), cfg_weight


def new_engine(name, **options):
    samples, cfg_weight = case(name)
    pipeline = random_pipeline(CASES[name][0]())
    return ExactEngine(as_family(pipeline), samples, cfg_weight, GROUP, **options), pipeline


@pytest.fixture(autouse=True)
def no_garbage():
    """What other tests of this process left is gone before memory is planned, and not in its midst."""
    collect_garbage()
    mx.clear_cache()


def scarce_engine(name):
    """One with memory for a single sample's pass."""
    samples, cfg_weight = case(name)
    pipeline = random_pipeline(CASES[name][0]())
    one_pass = PassMemory(working=2**22, state=2**14, tokens=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.engine.exact.measure_pass", lambda *_: one_pass)
        limit = memory_of_weights(pipeline.mmdit) + one_pass.working * 3 // 2
        return ExactEngine(as_family(pipeline), samples, cfg_weight, GROUP, limit), pipeline


@cache
def plain_velocities(name, layer=None, bits=None):
    """Guided velocities (n, H, W, C) of a fresh model, sample by sample, as the sampler computes them."""
    samples, cfg_weight = case(name)
    pipeline = random_pipeline(CASES[name][0]())
    if layer is not None:
        weight = get_weight(pipeline.mmdit, layer)
        packed = mx.quantize(weight, group_size=GROUP, bits=bits)
        set_weight(pipeline.mmdit, layer, mx.dequantize(*packed, group_size=GROUP, bits=bits))
    velocities = []
    for image in range(len(samples.image_index)):
        rows = np.flatnonzero(samples.image == image)
        denoise = plain_denoiser(
            pipeline,
            mx.array(samples.sigma[rows]),
            samples.conditioning["conditioning"][image],
            samples.conditioning["pooled_conditioning"][image],
            cfg_weight=cfg_weight,
        )
        velocities += [
            np.array(denoise(mx.array(samples.x[[row]]), step, exactly=True)) for step, row in enumerate(rows)
        ]
    return np.concatenate(velocities).astype(np.float64)


def plain_metrics(name, layer, bits):
    samples, _ = case(name)
    v, v_ref = (plain_velocities(name, *pair).reshape(len(samples), -1) for pair in ((layer, bits), ()))
    return {
        "squared_error": ((v - v_ref) ** 2).sum(axis=1),
        "squared_reference": (v_ref**2).sum(axis=1),
        "cosine": (v * v_ref).sum(axis=1) / np.linalg.norm(v, axis=1) / np.linalg.norm(v_ref, axis=1),
        "max_abs": np.abs(v - v_ref).max(axis=1),
    }


def assert_equal_measurements(shard, expected, *, reference=None):
    """Within 1e-5, and the float32 rounding of v that a small difference of two v can't be free of."""
    reference = shard.squared_reference if reference is None else reference
    slack = 1e-7 * np.sqrt(expected["squared_error"].sum() * reference.sum())
    np.testing.assert_allclose(
        shard.squared_error.sum(), expected["squared_error"].sum(), rtol=1e-5, atol=slack
    )
    slack = 1e-6 * np.sqrt((expected["squared_error"] * reference).max())
    np.testing.assert_allclose(shard.squared_error, expected["squared_error"], rtol=1e-5, atol=slack)
    np.testing.assert_allclose(shard.squared_reference, expected["squared_reference"], rtol=1e-5)
    np.testing.assert_allclose(shard.cosine, expected["cosine"], atol=1e-6)
    np.testing.assert_allclose(shard.max_abs, expected["max_abs"], rtol=1e-4, atol=1e-5)


def as_dict(shard):
    return {name: getattr(shard, name) for name in shard._layout}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_layer_equals_brute_force(name):
    engine, pipeline = new_engine(name)
    for layer in linear_layers(pipeline.mmdit):
        shard = engine.measure(layer.path, 2)
        assert_equal_measurements(shard, plain_metrics(name, layer.path, 2))
        assert (shard.noise_squared_error > 0).all()
        assert bool(shard.dead) == (layer.path == DEAD and name == "sd3")


def test_a_shard_names_its_samples_and_survives_its_bytes():
    engine, pipeline = new_engine("sd3")
    samples, _ = case("sd3")
    shard = engine.measure(LIVE, 4)
    assert shard.image_index.tolist() == samples.image_index[samples.image].tolist()
    assert shard.step_index.tolist() == samples.step_index.tolist()
    assert shard.output_size == samples.x[0].size
    weight = np.array(get_weight(pipeline.mmdit, LIVE), np.float64)
    np.testing.assert_allclose(shard.weight_squared_norm, (weight**2).sum(), rtol=1e-6)
    assert 0 < shard.weight_squared_error < shard.weight_squared_norm
    # A float32 scale and a float32 bias for each 32 weights.
    assert shard.bits_per_weight == 4 + 32 / 32, "scales and biases count 16 bits, though this model has 32"
    again = SensitivityShard.from_bytes(shard.to_bytes())
    assert all(np.array_equal(as_dict(again)[name], as_dict(shard)[name]) for name in as_dict(shard))


@pytest.mark.parametrize("name", CASES)
def test_jobs_out_of_order_and_small_memory_change_nothing(name):
    engine, pipeline = new_engine(name)
    layers = [layer.path for layer in linear_layers(pipeline.mmdit)][::5]
    in_order = {layer: as_dict(engine.measure(layer, 2)) for layer in layers}
    backwards, _ = scarce_engine(name)
    assert backwards.micro_batch == 1 < engine.micro_batch
    for layer in reversed(layers):
        assert_equal_measurements(backwards.measure(layer, 2), in_order[layer])


def test_a_state_is_advanced_not_computed_anew(monkeypatch):
    """Work is counted in blocks run, not in seconds."""
    engine, _ = new_engine("sd3")
    ran, advance, run_from = [], Replay.advance, Replay.run_from

    def advanced(replay, forward, state, position):
        ran.append(position - state.position)
        return advance(replay, forward, state, position)

    def run(replay, forward, state):
        ran.append(len(replay) + 1 - state.position)
        return run_from(replay, forward, state)

    monkeypatch.setattr(Replay, "advance", advanced)
    monkeypatch.setattr(Replay, "run_from", run)
    # Four embedders, two blocks, what follows them.
    whole, block = 4 + 2 + 1, f"{BLOCK}.image_transformer_block"
    engine.measure(f"{block}.attn.k_proj", 4)
    # Reference, advance to block 1, noise floor, candidate.
    assert ran == [whole, 5, 2, 2]
    ran.clear()
    engine.measure(f"{block}.mlp.fc1", 2)
    assert ran == [2]
    ran.clear()
    engine.measure("final_layer.linear", 4)
    # Advance, noise floor, candidate.
    assert ran == [1, 1, 1]


def test_weights_come_back_and_a_stopped_candidate_loses_only_itself():
    engine, pipeline = scarce_engine("sd3")
    before = np.array(get_weight(pipeline.mmdit, LIVE))
    expected = as_dict(engine.measure(LIVE, 4))
    assert np.array_equal(np.array(get_weight(pipeline.mmdit, LIVE)), before)
    told = []

    def stop(progress):
        told.append(progress)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.measure(LIVE, 2, stop)
    assert told[-1] == f"{LIVE} at 2 bits: 2 of 6 samples"
    assert np.array_equal(np.array(get_weight(pipeline.mmdit, LIVE)), before)
    again = as_dict(engine.measure(LIVE, 4))
    assert all(np.array_equal(again[name], expected[name]) for name in expected)


def test_a_weight_that_quantizes_to_itself_is_not_dead():
    pipeline, (samples, cfg_weight) = random_pipeline(sd3_config()), case("sd3")
    sixteen_steps = (mx.arange(64 * 64).reshape(64, 64) % 16 - 8) / 8
    set_weight(pipeline.mmdit, LIVE, sixteen_steps)
    unknown_outcome = replace(samples, has_next=np.zeros(len(samples), bool))
    shard = ExactEngine(as_family(pipeline), unknown_outcome, cfg_weight, GROUP).measure(LIVE, 4)
    assert shard.weight_squared_error == 0
    assert not shard.squared_error.any()
    assert not shard.dead


def test_another_model_is_refused_in_words():
    samples, cfg_weight = case("sd3")
    other = random_pipeline(sd3_config(), seed=1)
    with pytest.raises(RunMismatchError, match=r"does not reproduce image \d step \d"):
        ExactEngine(as_family(other), samples, cfg_weight, GROUP).measure(LIVE, 4)


def test_another_cfg_weight_is_refused_in_words():
    pipeline, (samples, _) = random_pipeline(sd3_config()), case("sd3")
    with pytest.raises(RunMismatchError, match="does not reproduce"):
        ExactEngine(as_family(pipeline), samples, 7.5, GROUP).measure(LIVE, 4)
    with pytest.raises(RunMismatchError, match="rows of conditioning"):
        ExactEngine(as_family(pipeline), samples, 0.0, GROUP)


def test_samples_stored_in_half_precision_are_accepted_and_a_wrong_model_is_still_found():
    samples, cfg_weight = case("sd3")
    half = replace(samples, x=samples.x.astype(np.float16), x_next=samples.x_next.astype(np.float16))
    shard = ExactEngine(as_family(random_pipeline(sd3_config())), half, cfg_weight, GROUP).measure(LIVE, 4)
    assert len(shard.squared_error) == len(samples)
    with pytest.raises(RunMismatchError, match="does not reproduce"):
        ExactEngine(as_family(random_pipeline(sd3_config(), seed=1)), half, cfg_weight, GROUP).measure(
            LIVE, 4
        )


def test_half_precision_weights_stay_half_precision():
    samples, cfg_weight = case("sd3")
    pipeline = random_pipeline(sd3_config())
    pipeline.mmdit.set_dtype(mx.float16)
    pipeline.activation_dtype = mx.float16
    shard = ExactEngine(as_family(pipeline), samples, cfg_weight, GROUP).measure(LIVE, 2)
    assert shard.bits_per_weight == 3
    full = plain_metrics("sd3", LIVE, 2)["squared_error"].sum()
    assert shard.squared_error.sum() == pytest.approx(full, rel=0.2)


def test_until_stops_early_with_a_draw_of_the_samples(monkeypatch):
    # Eight samples a pass, of two rows of 23 tokens: the timestep's embedding counts as one.
    monkeypatch.setattr("worker.engine.memory.MAX_TOKENS", 8 * 2 * 23)
    pipeline = random_pipeline(sd3_config())
    samples = draw_samples(pipeline, num_images=12, num_steps=3)
    engine = ExactEngine(as_family(pipeline), samples, 4.0, GROUP)
    loose, tight = engine.measure(LIVE, 2, until=30), engine.measure(LIVE, 2, until=1e-6)
    assert 4 <= len(loose.squared_error) < len(tight.squared_error) == len(samples)
    assert len(set(loose.image_index.tolist())) > 3
    pairs = list(zip(tight.image_index, tight.step_index, strict=True))
    rows = [pairs.index(pair) for pair in zip(loose.image_index, loose.step_index, strict=True)]
    assert np.array_equal(loose.squared_error, tight.squared_error[rows])


def test_one_bit_is_a_candidate():
    engine, _ = new_engine("sd3")
    one, two = engine.measure(LIVE, 1), engine.measure(LIVE, 2)
    # A scale and a bias of 16 bits for 32 weights.
    assert one.bits_per_weight == 1 + 32 / 32
    assert one.squared_error.sum() > two.squared_error.sum() > 0


def test_what_can_not_be_measured_is_refused():
    engine, _ = new_engine("sd3")
    with pytest.raises(TaskRefusedError, match="7 bits"):
        engine.measure(LIVE, 7)
    with pytest.raises(TaskRefusedError, match="no layer"):
        engine.measure("multimodal_transformer_blocks.7.image_transformer_block.attn.q_proj", 4)
    samples, cfg_weight = case("sd3")
    wide = ExactEngine(as_family(random_pipeline(sd3_config())), samples, cfg_weight, 128)
    with pytest.raises(TaskRefusedError, match=r"not measurable: .* 64 inputs"):
        wide.measure(LIVE, 4)
