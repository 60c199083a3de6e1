"""DiffusionKit's pass: its trajectory to the last bit. The published pass: steps along its own velocity."""

from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from mlx.utils import tree_flatten

from shared.errors import InputError
from shared.kinds.calibration import CalibrationShard, CalibrationTask
from tests.tasks import SETTINGS
from tests.tiny_flux import load_tiny_flux
from worker.engine.batches import guided_velocity
from worker.engine.calibrate import calibrate
from worker.engine.trajectory import Trajectory, denoise
from worker.families.diffusionkit import files as model_files
from worker.families.diffusionkit import tiny_checkpoint
from worker.families.diffusionkit.mmdit_family import MMDiTFamily
from worker.families.diffusionkit.quiet_imports import quiet_imports
from worker.families.flux import Flux
from worker.families.registry import load_family

with quiet_imports():
    from diffusionkit.mlx import FluxLatentFormat, FluxPipeline, model_io
    from diffusionkit.mlx.mmdit import MMDiT
    from diffusionkit.mlx.sampler import FluxSampler

pytestmark = pytest.mark.slow

PROMPTS = ("a red circle", "a small blue square on a grey background")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for module in (tiny_checkpoint, model_files):
            patch.setattr(module, "user_cache_path", lambda name: Path(folder) / name)
        yield


@pytest.fixture(scope="module")
def model(cache: object) -> MMDiTFamily:
    return load_family(SETTINGS)


def draw(model: MMDiTFamily, prompt: str, seed: int, cfg_weight: float, steps: int = 4) -> Trajectory:
    return denoise(model, prompt, seed=seed, num_steps=steps, cfg_weight=cfg_weight, latent_size=(8, 8))


def judge(prompt: str, seed: int, cfg_weight: float, steps: int = 4) -> np.ndarray:
    """DiffusionKit alone, on a pipeline of its own."""
    pipeline = load_family(SETTINGS)._pipeline
    conditioning, pooled = pipeline.encode_text(prompt, cfg_weight, "")
    if cfg_weight <= 0:
        # Its denoiser takes one row of latents then, but its text encoder gives two.
        conditioning, pooled = conditioning[:1], pooled[:1]
    conditioning = conditioning.astype(pipeline.activation_dtype)
    pooled = pooled.astype(pipeline.activation_dtype)
    latent, _ = pipeline.denoise_latents(
        conditioning, pooled, num_steps=steps, cfg_weight=cfg_weight, latent_size=(8, 8), seed=seed
    )
    return np.array(latent)


@pytest.mark.parametrize(("prompt", "seed", "cfg_weight", "steps"), [
    (PROMPTS[0], 0, 7.5, 4),
    (PROMPTS[1], 1, 7.5, 3),
    (PROMPTS[0], 2**32 - 1, 0.0, 2),
    (PROMPTS[1], 5, 1.0, 1),
])  # fmt: skip
def test_equals_diffusionkit_to_the_last_bit(
    model: MMDiTFamily, prompt: str, seed: int, cfg_weight: float, steps: int
) -> None:
    # One model for all cases: each but the first is an image after another one.
    ours = draw(model, prompt, seed, cfg_weight, steps)
    final = np.array(model._pipeline.latent_format.process_out(ours.x[-1]))
    assert np.array_equal(final, judge(prompt, seed, cfg_weight, steps))
    assert len(ours.x) == steps + 1


def test_a_second_image_reads_nothing_from_disk(model: MMDiTFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    first = draw(model, PROMPTS[0], 3, 7.5)

    def no_more(*_: object, **__: object) -> None:
        raise AssertionError("read from disk again")

    monkeypatch.setattr(model_io, "hf_hub_download", no_more)
    monkeypatch.setattr(mx, "load", no_more)
    draw(model, PROMPTS[1], 4, 7.5)
    again = draw(model, PROMPTS[0], 3, 7.5)
    assert all(np.array_equal(a, b) for a, b in zip(first.x, again.x, strict=True))


def test_seed_zero_is_a_seed(model: MMDiTFamily) -> None:
    zero, again, one = (draw(model, PROMPTS[0], seed, 7.5, 1).x[0] for seed in (0, 0, 1))
    assert np.array_equal(zero, again)
    assert not np.array_equal(zero, one)


def test_a_shard_holds_the_trajectory_and_what_the_producer_must_know(model: MMDiTFamily) -> None:
    task = CalibrationTask(run=SETTINGS, store_id="relay", image_index=2, prompt=PROMPTS[1], seed=2)
    seen: list[str] = []
    shard = calibrate(task, model, seen.append)
    ours = draw(model, PROMPTS[1], 2, 7.5)
    assert np.array_equal(shard.x, np.concatenate([np.array(x) for x in ours.x]))
    assert np.array_equal(shard.conditioning["conditioning"], np.array(ours.conditioning["conditioning"]))
    assert shard.sigma[-1] == 0
    assert shard.sigma[0] == pytest.approx(1.0)
    assert np.allclose(shard.timestep, shard.sigma[:-1] * 1000)
    assert shard.preview_png.tobytes().startswith(b"\x89PNG")
    assert seen[:4] == [f"step {i}/4" for i in range(1, 5)]


def test_half_precision_keeps_what_the_transformer_sees(cache: object) -> None:
    settings = msgspec.structs.replace(SETTINGS, precision="float16")
    task = CalibrationTask(run=settings, store_id="relay", image_index=0, prompt=PROMPTS[0], seed=0)
    shard = calibrate(task, load_family(settings), lambda progress: None)
    assert shard.x.dtype == shard.conditioning["conditioning"].dtype == np.float16
    assert np.isfinite(shard.x).all()


def test_a_preview_that_fails_costs_a_warning_and_not_the_image(
    model: MMDiTFamily, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task = CalibrationTask(run=SETTINGS, store_id="relay", image_index=2, prompt=PROMPTS[1], seed=2)
    whole = calibrate(task, model, lambda progress: None)

    def fail(*_: object) -> None:
        raise RuntimeError("[malloc] Unable to allocate 9 bytes")

    monkeypatch.setattr(model._pipeline, "decode_latents_to_image", fail)
    shard = CalibrationShard.from_bytes(calibrate(task, model, lambda progress: None).to_bytes())
    assert shard.preview_png.size == 0
    assert np.array_equal(shard.x, whole.x)
    assert "image 2 has no preview, its samples are kept: [malloc]" in caplog.text


def test_the_published_pass_keeps_timesteps_whole_and_steps_along_the_velocity(cache: object) -> None:
    settings = msgspec.structs.replace(SETTINGS, precision="float16", reference="published")
    model = load_family(settings)
    ours = draw(model, PROMPTS[0], 0, 7.5, steps=3)
    assert ours.timesteps.dtype == mx.float32
    assert np.array_equal(np.array(ours.timesteps), 1000 * np.array(ours.sigmas))
    for step in range(3):
        x = mx.repeat(ours.x[step], 2, axis=0).astype(mx.float16)
        output = model.velocity(x, mx.repeat(ours.sigmas[step][None], 2), ours.conditioning)
        assert output.dtype == mx.float16
        v = np.array(guided_velocity(output, 7.5))
        implied = np.array((ours.x[step + 1] - ours.x[step]) / (ours.sigmas[step + 1] - ours.sigmas[step]))
        np.testing.assert_allclose(implied, v, atol=1e-2 * np.abs(v).max())


def test_the_two_passes_differ_and_a_run_says_which(model: MMDiTFamily) -> None:
    published = load_family(msgspec.structs.replace(SETTINGS, reference="published"))
    # DiffusionKit's pass is of the whole model's files, as it was before parts were told apart.
    parts = published.part_fingerprints()
    assert parts == model.part_fingerprints()
    assert parts["transformer"] == published.fingerprint != model.fingerprint
    ours, theirs = (draw(m, PROMPTS[0], 0, 7.5).x[-1] for m in (published, model))
    difference = float(mx.linalg.norm(ours - theirs).item() / mx.linalg.norm(theirs).item())
    # float32, and no key biases in this model: only the GELU is another one.
    assert 1e-6 < difference < 1e-2


def test_a_guidance_that_the_pass_does_not_take_is_refused() -> None:
    dev = msgspec.structs.replace(SETTINGS, model="argmaxinc/mlx-FLUX.1-dev", use_t5=True, cfg_weight=0.0)
    for changes, says in (
        ({"reference": "published"}, "needs a guidance"),
        ({"guidance": 3.5}, "takes no guidance"),
        ({"model": "tiny-sd3", "use_t5": False, "reference": "published", "guidance": 1.0}, "takes no"),
    ):
        with pytest.raises(InputError, match=says):
            load_family(msgspec.structs.replace(dev, **changes))


class _TinyFlux(FluxPipeline):
    """FLUX's sampler and denoising on a small transformer; its text comes from a seed, not from T5."""

    def __init__(self, mmdit: MMDiT) -> None:
        self.mmdit, self.sampler = mmdit, FluxSampler(shift=1.0)
        self.activation_dtype = mx.float32
        self.latent_format = FluxLatentFormat()
        self.adaln = [
            (name, mx.array(value)) for name, value in tree_flatten(mmdit.parameters()) if "adaLN" in name
        ]

    def encode_text(self, text: str, cfg_weight: float, negative_text: str) -> tuple[mx.array, mx.array]:
        mx.random.seed(len(text))
        return mx.random.normal((1, 5, 128)), mx.random.normal((1, 64))

    def load_mmdit(self, only_modulation_dict: bool = False) -> list[tuple[str, mx.array]]:
        return self.adaln


def test_flux_takes_its_own_schedule_and_no_guidance(tmp_path: Path) -> None:
    ours = denoise(
        Flux(_TinyFlux(load_tiny_flux(tmp_path))),
        "a tree",
        seed=3,
        num_steps=3,
        cfg_weight=0.0,
        latent_size=(8, 8),
    )
    judge = _TinyFlux(load_tiny_flux(tmp_path))
    conditioning, pooled = judge.encode_text("a tree", 0.0, "")
    latent, _ = judge.denoise_latents(
        conditioning, pooled, num_steps=3, cfg_weight=0.0, latent_size=(8, 8), seed=3
    )
    assert len(ours.x) == 4
    assert float(ours.sigmas[-1]) == 0
    assert np.array_equal(np.array(judge.latent_format.process_out(ours.x[-1])), np.array(latent))
