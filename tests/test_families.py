"""DiffusionKit's families give what its own code gives; another library's is one file and one line."""

from functools import cache

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.random_mmdit import flux_config, random_pipeline, sd3_config
from shared.errors import InputError
from shared.models import model_spec
from shared.runs import RunSettings
from tests.toy_families import ToyFamily, TwoStreamFamily
from worker.engine.replay import START, Replay
from worker.families import FAMILIES, load_family
from worker.families.diffusionkit.layers import linear_layers
from worker.families.diffusionkit.modulation import set_modulation
from worker.families.flux import Flux
from worker.families.sd3 import Sd3
from worker.trajectory import decode_png, denoise

DOUBLE, UNIFIED = "multimodal_transformer_blocks.1", "unified_transformer_blocks.1.transformer_block"
SETTINGS = RunSettings(
    model="tiny-sd3",
    num_steps=2,
    cfg_weight=7.5,
    image_size=64,
    seed=3,
    shift=3.0,
    use_t5=False,
    precision="float32",
    prompts_sha256="a" * 64,
)


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
    ties = {role: flux.place(f"{UNIFIED}.{role}").tie for role in ("attn.q_proj", "mlp.fc1", "mlp.fc2")}
    assert [*ties.values()] == [f"single_blocks.1.linear{part}" for part in (1, 1, 2)]
    assert flux.place(f"{UNIFIED}.attn.q_proj").block == "unified block 1"


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
def test_a_loaded_family_draws_the_image_that_the_trajectory_draws():
    model = load_family(model_spec(SETTINGS.model).family, SETTINGS)
    pipeline = model._pipeline
    expected = denoise(
        pipeline, "a red cube", seed=3, num_steps=2, cfg_weight=7.5, latent_size=SETTINGS.latent_size
    )
    x = draw(model, "a red cube", SETTINGS, cfg_weight=7.5)
    # DiffusionKit's step goes by x - (x - sigma v), which rounds.
    np.testing.assert_allclose(np.array(x), np.array(expected.x[-1]), rtol=0, atol=2e-5)
    assert model.decode(expected.x[-1]) == decode_png(pipeline, expected.x[-1])
    assert len(model.fingerprint) == 64


def draw(model, prompt, settings, *, cfg_weight):
    """Euler steps of the guided velocity, by nothing but the family's interface."""
    size = (settings.image_size, settings.image_size)
    conditioning, sigmas = model.encode(prompt, cfg_weight), model.sigmas(settings.num_steps, size)
    x = model.first_latent(settings.seed, sigmas, size)
    for step in range(settings.num_steps):
        v_text, v_negative = model.velocity(
            mx.concatenate([x, x]), mx.broadcast_to(sigmas[step], [2]), conditioning
        ).split(2)
        x = x + (v_negative + cfg_weight * (v_text - v_negative)) * (sigmas[step + 1] - sigmas[step])
    return x


@pytest.mark.parametrize("new_family", [ToyFamily, TwoStreamFamily])
def test_another_librarys_model_is_one_file_and_one_line(monkeypatch, new_family):
    line = {"toy": "tests.toy_families"}
    monkeypatch.setattr("worker.families.FAMILIES", FAMILIES | line)
    monkeypatch.setattr("tests.toy_families.ToyFamily", new_family)
    model = load_family("toy", SETTINGS)
    x = draw(model, "a red cube", SETTINGS, cfg_weight=2.0)
    assert model.decode(x).startswith(b"\x89PNG")
    conditioning = model.encode("a red cube", 0.0)

    def forward():
        return model.velocity(x, mx.array([0.5]), conditioning)

    replay = Replay(model.stages, model.after_blocks, forward)
    state = replay.advance(forward, START, len(replay))
    assert np.array_equal(np.array(replay.run_from(forward, state)), np.array(forward()))


def test_an_unknown_family_is_refused_in_words():
    with pytest.raises(InputError, match="no family of models named 'sd4'; choose one of: sd3, flux"):
        load_family("sd4", SETTINGS)
