"""DiffusionKit's families give what its own code gives; another library's is one file and one line."""

from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from msgspec.structs import replace

from benchmarks.random_mmdit import flux_config, random_pipeline, sd3_config
from benchmarks.settings import run_settings
from shared.errors import InputError
from shared.kinds.calibration import CalibrationShard, CalibrationTask
from shared.layout.sample_set import SampleSet
from shared.model_card import decode_model_card
from tests.toy_families import ToyFamily, TwoStreamFamily
from worker.engine.exact import ExactEngine
from worker.engine.quantize import quantize_layer, swapped
from worker.engine.sketch import SketchEngine
from worker.engine.trajectory import denoise
from worker.families.diffusionkit.layers import linear_layers
from worker.families.diffusionkit.mmdit_places import place_of
from worker.families.diffusionkit.modulation import set_modulation
from worker.families.flux import Flux
from worker.families.registry import FAMILIES, load_family, load_family_named
from worker.families.sd3 import Sd3
from worker.kinds.lent import EngineSlot, Lent
from worker.kinds.registry import run_task

MULTI, UNIFIED = "multimodal_transformer_blocks", "unified_transformer_blocks"
DOUBLE, SINGLE = f"{MULTI}.1", f"{UNIFIED}.1.transformer_block"
SETTINGS = run_settings(num_steps=2, seed=3, prompts_sha256="a" * 64)


@cache
def family(name):
    if name == "sd3":
        return Sd3(random_pipeline(sd3_config()))
    return Flux(random_pipeline(flux_config(depth=2)))


def inputs(rows, seed=0):
    draw = np.random.default_rng(seed).standard_normal
    shapes = {"x": (rows, 4, 4, 16), "conditioning": (rows, 5, 64), "pooled_conditioning": (rows, 64)}
    return {name: mx.array(draw(shape).astype(np.float32)) for name, shape in shapes.items()}


@pytest.mark.parametrize(("name", "rows"), [("sd3", 2), ("sd3", 1), ("flux", 1)])
def test_a_velocity_is_diffusionkits_to_the_last_bit(name, rows):
    model, sigma, conditioning = family(name), mx.full((rows,), 0.7), inputs(rows)
    x = conditioning.pop("x")
    velocity = np.array(model.velocity(x, sigma, conditioning))
    timesteps = 1000 * sigma
    set_modulation(model.transformer, conditioning["pooled_conditioning"], timesteps[:1])
    theirs = model.transformer(x, conditioning["conditioning"][:, :, None], timesteps)
    assert np.array_equal(velocity, np.array(theirs))


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_rows_of_different_sigmas_share_a_pass(name):
    model, sigma, conditioning = family(name), mx.array([0.9, 0.9, 0.2, 0.2]), inputs(4)
    x = conditioning.pop("x")
    together = np.array(model.velocity(x, sigma, conditioning))
    for rows in (slice(0, 2), slice(2, 4)):
        alone = model.velocity(
            x[rows], sigma[rows], {key: value[rows] for key, value in conditioning.items()}
        )
        np.testing.assert_allclose(together[rows], np.array(alone), rtol=0, atol=1e-6)
    swapped = np.array(model.velocity(x, sigma[::-1], conditioning))
    assert np.abs(swapped - together).max() > 1e-3


def test_places_ties_and_export_names():
    def told(model, path):
        place = model.place(path)
        return place.block, place.stream, place.role, place.short, place.tie, model.export_name(path)

    sd3, flux = family("sd3"), family("flux")
    text, qkv = (
        f"{DOUBLE}.text_transformer_block",
        "model.diffusion_model.joint_blocks.1.context_block.attn.qkv",
    )
    assert told(sd3, f"{text}.attn.k_proj") == ("block 1", "text", "k", "text k", qkv, qkv)
    last = "model.diffusion_model.final_layer.adaLN_modulation.1"
    assert told(sd3, "final_layer.adaLN_modulation.layers.1") == (
        ("final layer", None, "final", "adaLN", None, last)
    )
    assert told(flux, "t_embedder.mlp.layers.0") == (
        ("embedders", None, "embedder", "t_embedder.0", None, "time_in.in_layer")
    )
    ties = {role: flux.place(f"{SINGLE}.{role}").tie for role in ("attn.q_proj", "mlp.fc1", "mlp.fc2")}
    assert [*ties.values()] == [f"single_blocks.1.linear{part}" for part in (1, 1, 2)]
    assert flux.place(f"{SINGLE}.attn.q_proj").block == "unified block 1"


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_every_layer_has_a_place_and_a_name(name):
    model = family(name)
    layers = [layer.path for layer in linear_layers(model.transformer)]
    places = [model.place(layer) for layer in layers]
    assert "other" not in {place.role for place in places}
    assert len({(place.block, place.short) for place in places}) == len(layers)
    names = [model.export_name(layer) for layer in layers]
    assert [place.tie for place in places] == [n if names.count(n) > 1 else None for n in names]


@pytest.mark.slow
def test_a_loaded_family_draws_the_image_that_its_interface_says():
    model = load_family(SETTINGS)
    expected = denoise(
        model, "a red cube", seed=3, num_steps=2, cfg_weight=7.5, latent_size=SETTINGS.latent_size
    )
    sigmas, conditioning = model.sigmas(2), model.encode("a red cube", 7.5)
    x = model.first_latent(3, sigmas, SETTINGS.latent_size)
    for step in range(2):
        rows = mx.concatenate([x, x])
        v_text, v_negative = model.velocity(rows, mx.broadcast_to(sigmas[step], [2]), conditioning).split(2)
        x = x + (v_negative + 7.5 * (v_text - v_negative)) * (sigmas[step + 1] - sigmas[step])
    # DiffusionKit's step goes by x - (x - sigma v), which rounds.
    np.testing.assert_allclose(np.array(x), np.array(expected.x[-1]), rtol=0, atol=2e-5)
    assert len(model.fingerprint) == 64


@pytest.fixture(params=[ToyFamily, TwoStreamFamily])
def toy(request, monkeypatch):
    """Another library's model: one file, and one line."""
    line = {"toy": "tests.toy_families"}
    monkeypatch.setattr("worker.families.registry.FAMILIES", FAMILIES | line)
    monkeypatch.setattr("tests.toy_families.ToyFamily", request.param)
    return load_family_named("toy", SETTINGS)


def lent(family, samples=None):
    return Lent(
        family=family,
        check=lambda progress: None,
        samples=lambda sensitivity: samples,
        blob=lambda digest: b"",
        memory_share=2**30,
        engine_slot=EngineSlot(),
    )


def drawn_samples(family):
    """Samples of one image, by a calibration task of its own."""
    run = replace(SETTINGS, cfg_weight=2.0, num_steps=3)
    task = CalibrationTask(run=run, store_id="relay", image_index=0, prompt="a red cube", seed=1)
    shard = CalibrationShard.from_bytes(run_task(task, lent(family)))
    assert shard.preview_png.tobytes().startswith(b"\x89PNG")
    card = decode_model_card(shard.model_json.tobytes())
    assert [layer.path for layer in card.layers] == [layer.path for layer in family.layers]
    steps = np.arange(3, dtype=np.int32)
    return SampleSet(
        x=shard.x[:-1],
        timestep=shard.timestep,
        sigma=shard.sigma[:-1],
        x_next=shard.x[1:],
        sigma_next=shard.sigma[1:],
        has_next=np.ones(3, bool),
        step_index=steps,
        image=np.zeros(3, np.int32),
        image_index=np.zeros(1, np.int32),
        conditioning={name: array[None] for name, array in shard.conditioning.items()},
    )


def test_a_toy_is_calibrated_and_measured_by_both_engines(toy):
    samples = drawn_samples(toy)
    exact = ExactEngine(toy, samples, 2.0, 32)
    sketch, probes = SketchEngine(toy, samples, 2.0, 32, (4,)), 64
    shards = [sketch.measure(sample, 0, probes) for sample in range(len(samples))]
    for index, layer in enumerate(toy.layers):
        if layer.shape[1] % 32:
            assert not shards[0].measurable[index]
            continue
        measured = exact.measure(layer.path, 4)
        expected = brute_force(toy, samples, layer.path)
        np.testing.assert_allclose(measured.squared_error.sum(), expected, rtol=1e-4)
        sketched = sum((shard.products[index, 0] ** 2).mean() for shard in shards)
        # First order in dW, and the mean of 64 squares for each of three samples.
        assert 0.5 < sketched / expected < 2, layer.path
        assert not measured.dead


def brute_force(family, samples, layer):
    """Summed squared error of the guided velocity, by whole passes."""

    def velocities():
        conditioning = {name: mx.array(array[0]) for name, array in samples.conditioning.items()}
        return np.concatenate(
            [
                np.array(
                    family.direction(mx.array(samples.x[[i]]), mx.array(samples.sigma[i]), conditioning, 2.0)
                )
                for i in range(len(samples))
            ]
        ).astype(np.float64)

    reference = velocities()
    candidate = quantize_layer(family.transformer, layer, bits=4, group_size=32)
    with swapped(family.transformer, layer, candidate.weight):
        return ((velocities() - reference) ** 2).sum()


def test_an_unknown_family_is_refused_in_words():
    with pytest.raises(InputError, match="no family of models named 'sd4'; choose one of: sd3, flux"):
        load_family_named("sd4", SETTINGS)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "multimodal_transformer_blocks.3.text_transformer_block.attn.q_proj",
            ("block 3", "text", "q", "text q"),
        ),
        (
            "multimodal_transformer_blocks.11.image_transformer_block.mlp.fc2",
            ("block 11", "image", "fc2", "image fc2"),
        ),
        (
            "unified_transformer_blocks.7.transformer_block.adaLN_modulation.layers.1",
            ("unified block 7", "both", "adaLN", "adaLN"),
        ),
        (
            "unified_transformer_blocks.7.transformer_block.novel.proj",
            ("unified block 7", "both", "other", "novel.proj"),
        ),
        ("final_layer.linear", ("final layer", None, "final", "linear")),
        ("final_layer.adaLN_modulation.layers.1", ("final layer", None, "final", "adaLN")),
        ("t_embedder.mlp.layers.2", ("embedders", None, "embedder", "t_embedder.2")),
        ("guidance_in.mlp.layers.0", ("embedders", None, "embedder", "guidance_in.0")),
        ("context_embedder", ("embedders", None, "embedder", "context_embedder")),
        ("something.else", ("other layers", None, "other", "something.else")),
    ],
)
def test_places_are_read_off_paths(path, expected):
    place = place_of(path, tie=None)
    assert (place.block, place.stream, place.role, place.short) == expected
