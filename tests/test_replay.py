"""The judges: the model's own whole forward pass, and one backward pass over everything."""

from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from benchmarks.random_mmdit import random_pipeline, sd3_config
from shared.errors import ModelUnavailableError
from tests.tiny_flux import load_tiny_flux
from tests.toy_families import ToyFamily, TwoStreamFamily
from worker.engine.block_gradients import pull_back_by_block, record_states
from worker.engine.layers import get_weight, set_weight
from worker.engine.quantize import swapped
from worker.engine.replay import START, Replay
from worker.families.diffusionkit.quiet_imports import quiet_imports
from worker.families.flux import Flux
from worker.families.sd3 import Sd3

with quiet_imports():
    from diffusionkit.mlx.sampler import FluxSampler

ROWS = 4
BLOCK = "multimodal_transformer_blocks.1."
DEAD = f"{BLOCK}text_transformer_block.attn.q_proj"


@dataclass(frozen=True)
class Case:
    family: Any
    forward: Any
    replay: Replay
    layers: list[str]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Makes a small model of each kind, once, with a pass of rows of two different sigmas."""

    def flux():
        mmdit = load_tiny_flux(tmp_path_factory.mktemp("flux"))
        return Flux(SimpleNamespace(mmdit=mmdit, sampler=FluxSampler(shift=1.0), activation_dtype=mx.float32))

    makers = {
        "sd3": lambda: Sd3(random_pipeline(sd3_config())),
        "sd3 with qk norm": lambda: Sd3(random_pipeline(replace(sd3_config(), use_qk_norm=True))),
        "flux": flux,
        "toy": ToyFamily,
        "two streams": TwoStreamFamily,
    }

    @cache
    def make(name):
        family = makers[name]()
        draw = np.random.default_rng(0).standard_normal
        if isinstance(family, ToyFamily):
            channels = 8
            pairs = [family.encode(prompt, 4.0) for prompt in ("a red cube", "a blue ball")]
            conditioning = {key: mx.concatenate([pair[key] for pair in pairs]) for key in pairs[0]}
        else:
            config, channels = family.transformer.config, 16
            text = draw((ROWS, 5, config.token_level_text_embed_dim)).astype(np.float32)
            pooled = draw((ROWS, config.pooled_text_embed_dim)).astype(np.float32)
            conditioning = {"conditioning": mx.array(text), "pooled_conditioning": mx.array(pooled)}
        x = mx.array(draw((ROWS, 4, 4, channels)).astype(np.float32))
        sigma = mx.array([1.0, 1.0, 0.3, 0.3])

        def forward():
            return family.velocity(x, sigma, conditioning)

        layers = [
            path for path, module in family.transformer.named_modules() if isinstance(module, nn.Linear)
        ]
        return Case(family, forward, Replay(family.stages, family.after_blocks, forward), layers)

    return make


CASES = ("sd3", "sd3 with qk norm", "flux", "toy", "two streams")


@pytest.mark.parametrize("name", CASES)
def test_a_change_entered_at_its_block_equals_the_whole_pass_to_the_last_bit(case, name):
    model = case(name)
    states, output = record_states(model.replay, model.forward)
    reference = np.array(model.forward())
    assert np.array_equal(np.array(output), reference)
    for layer in model.layers:
        with swapped(model.family.transformer, layer, -get_weight(model.family.transformer, layer)):
            whole = np.array(model.forward())
            entered = np.array(model.replay.run_from(model.forward, states[model.replay.entry_of(layer)]))
        assert np.array_equal(entered, whole), layer
        assert np.array_equal(whole, reference) == (layer == DEAD and name.startswith("sd3")), layer


@pytest.mark.parametrize("name", CASES)
def test_gradients_by_block_equal_one_backward_pass(case, name):
    model = case(name)
    transformer = model.family.transformer
    found = {layer: np.zeros((3, *get_weight(transformer, layer).shape)) for layer in model.layers}

    def receive(first, gradients):
        for layer in list(gradients):
            gradient = gradients.pop(layer)
            found[layer][first : first + len(gradient)] += np.array(gradient)

    states, output = record_states(model.replay, model.forward)
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (3, *output.shape)).astype(np.float32)
    pull_back_by_block(
        model.replay,
        model.forward,
        states,
        transformer=transformer,
        layers=model.layers,
        cotangent=mx.array(signs),
        at_once=2,
        receive=receive,
    )
    for probe, sign in enumerate(signs):
        expected = one_backward_pass(model, mx.array(sign))
        for layer in model.layers:
            scale = np.linalg.norm(expected[layer])
            difference = np.linalg.norm(found[layer][probe] - expected[layer])
            assert difference <= 4e-7 * scale, (layer, difference / scale)
            assert (scale == 0) == (layer == DEAD and name.startswith("sd3")), layer


def one_backward_pass(model, sign):
    transformer = model.family.transformer
    weights = [get_weight(transformer, layer) for layer in model.layers]

    def output(*values):
        for layer, value in zip(model.layers, values, strict=True):
            set_weight(transformer, layer, value)
        return [model.forward()]

    try:
        _, gradients = mx.vjp(output, weights, [sign])
        return {layer: np.array(gradient) for layer, gradient in zip(model.layers, gradients, strict=True)}
    finally:
        for layer, weight in zip(model.layers, weights, strict=True):
            set_weight(transformer, layer, weight)


def test_layers_enter_where_they_are_read(case):
    sd3, streams = case("sd3").replay, case("two streams").replay
    assert [len(sd3), sd3.entry_of(f"{BLOCK}image_transformer_block.mlp.fc2")] == [6, 5]
    before = ("t_embedder.mlp.layers.0", "y_embedder.mlp.layers.0", "context_embedder", "x_embedder.proj")
    assert sorted(sd3.block_of(layer) for layer in before) == [0, 1, 2, 3]
    assert [sd3.block_of("final_layer.linear"), sd3.first_block] == [6, 4]
    # The blocks of the two lists are called in turn.
    order = ("image_blocks.0.up", "text_blocks.0.up", "image_blocks.1.up", "text_blocks.1.up", "image_out")
    assert [streams.entry_of(layer) for layer in order] == [0, 1, 2, 3, 4]
    assert streams.block_of("shared_modulation") is None


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        # Four embedders; image and text; behind the last block, whose text is None, the image alone.
        ("sd3", [0, 1, 2, 3, 4, 4, 3]),
        # Two blocks of image and text, then two over both joined.
        ("flux", [0, 1, 2, 3, 4, 4, 4, 3, 3]),
        # Interleaved: the newest of each list.
        ("two streams", [0, 1, 2, 2, 2]),
    ],
)
def test_only_outputs_that_are_still_read_are_kept(case, name, kept):
    states, _ = record_states(case(name).replay, case(name).forward)
    assert [len(state.arrays) for state in states] == kept


def test_blocks_before_the_entry_are_not_run(case, monkeypatch):
    model = case("toy")
    state = model.replay.advance(model.forward, START, 2)
    mx.eval(state.arrays)
    block, ran = type(model.family.transformer.layers[0]), []
    original = block.__call__
    monkeypatch.setattr(
        block, "__call__", lambda self, *args, **kwargs: ran.append(self) or original(self, *args, **kwargs)
    )
    mx.eval(model.replay.run_from(model.forward, state))
    assert [id(each) for each in ran] == [id(model.family.transformer.layers[2])]


class Blocks(nn.Module):
    """A list of linear blocks, run in a way that a test gives."""

    def __init__(self, run):
        super().__init__()
        self.layers = [nn.Linear(4, 4) for _ in range(3)]
        self.run = run

    def __call__(self, h):
        return self.run(self.layers, h)


def replay_of(run):
    mx.random.seed(0)
    model = Blocks(run)
    return (lambda: model(mx.ones((1, 4)))), model


def test_an_output_that_is_read_again_later_is_kept_until_then():
    def with_skip(layers, h):
        first = layers[0](h)
        return layers[2](layers[1](first) + first)

    forward, model = replay_of(with_skip)
    replay, expected = Replay({"layers": model.layers}, (), forward), np.array(forward())
    states = [replay.advance(forward, START, position) for position in range(4)]
    assert [len(state.arrays) for state in states] == [0, 1, 2, 1]
    assert all(np.array_equal(np.array(replay.run_from(forward, state)), expected) for state in states)


def test_a_model_may_change_an_output_in_place():
    def add_in_place(layers, h):
        first = layers[0](h)
        first += 1
        return layers[2](layers[1](first)) + first

    forward, model = replay_of(add_in_place)
    replay = Replay({"first": model.layers[:1], "rest": model.layers[1:]}, (), forward)
    expected = np.array(forward())
    for position in range(4):
        state = replay.advance(forward, START, position)
        for _ in range(2):
            assert np.array_equal(np.array(replay.run_from(forward, state)), expected)


def test_a_block_that_is_called_twice_is_refused_in_words():
    forward, model = replay_of(lambda layers, h: layers[1](layers[0](layers[0](h))))
    with pytest.raises(ModelUnavailableError, match="calls 2 blocks of layers 3 times"):
        Replay({"layers": model.layers}, (), forward)


def test_a_block_that_no_pass_calls_changes_nothing():
    forward, model = replay_of(lambda layers, h: layers[1](layers[0](h)))
    replay = Replay({"layers": model.layers}, (), forward)
    assert [replay.entry_of(f"layers.{index}.weight") for index in range(3)] == [0, 1, 2]


def test_blocks_are_themselves_again_whatever_happens():
    def fail(layers, h):
        layers[0](h)
        raise KeyboardInterrupt

    forward, model = replay_of(fail)
    with pytest.raises(KeyboardInterrupt):
        Replay({"layers": model.layers}, (), forward)
    assert {type(layer) for layer in model.layers} == {nn.Linear}
