"""A trajectory is DiffusionKit's own, to the last bit, for the first image and for those after it."""

from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from diffusionkit.mlx import FluxLatentFormat, FluxPipeline, model_io
from diffusionkit.mlx.mmdit import MMDiT
from diffusionkit.mlx.sampler import FluxSampler
from mlx.utils import tree_flatten

from shared.kinds.calibration import CalibrationTask
from tests.tasks import SETTINGS
from tests.tiny_flux import load_tiny_flux
from worker.calibrate import calibrate
from worker.model import model_files, tiny_checkpoint
from worker.model.models import LoadedModel, load_model
from worker.trajectory import Trajectory, denoise

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
def model(cache: object) -> LoadedModel:
    return load_model(SETTINGS)


def draw(model: LoadedModel, prompt: str, seed: int, cfg_weight: float, steps: int = 4) -> Trajectory:
    return denoise(
        model.pipeline, prompt, seed=seed, num_steps=steps, cfg_weight=cfg_weight, latent_size=(8, 8)
    )


def judge(prompt: str, seed: int, cfg_weight: float, steps: int = 4) -> np.ndarray:
    """DiffusionKit alone, on a pipeline of its own."""
    pipeline = load_model(SETTINGS).pipeline
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
    model: LoadedModel, prompt: str, seed: int, cfg_weight: float, steps: int
) -> None:
    # One model for all cases: each but the first is an image after another one.
    ours = draw(model, prompt, seed, cfg_weight, steps)
    final = np.array(model.pipeline.latent_format.process_out(ours.x[-1]))
    assert np.array_equal(final, judge(prompt, seed, cfg_weight, steps))
    assert len(ours.x) == steps + 1


def test_a_second_image_reads_nothing_from_disk(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = draw(model, PROMPTS[0], 3, 7.5)

    def no_more(*_: object, **__: object) -> None:
        raise AssertionError("read from disk again")

    monkeypatch.setattr(model_io, "hf_hub_download", no_more)
    monkeypatch.setattr(mx, "load", no_more)
    draw(model, PROMPTS[1], 4, 7.5)
    again = draw(model, PROMPTS[0], 3, 7.5)
    assert all(np.array_equal(a, b) for a, b in zip(first.x, again.x, strict=True))


def test_seed_zero_is_a_seed(model: LoadedModel) -> None:
    zero, again, one = (draw(model, PROMPTS[0], seed, 7.5, 1).x[0] for seed in (0, 0, 1))
    assert np.array_equal(zero, again)
    assert not np.array_equal(zero, one)


def test_a_shard_holds_the_trajectory_and_what_the_producer_must_know(model: LoadedModel) -> None:
    task = CalibrationTask(run=SETTINGS, store_id="relay", image_index=2, prompt=PROMPTS[1], seed=2)
    seen: list[str] = []
    shard = calibrate(task, model, seen.append)
    ours = draw(model, PROMPTS[1], 2, 7.5)
    assert np.array_equal(shard.x, np.concatenate([np.array(x) for x in ours.x]))
    assert np.array_equal(shard.conditioning, np.array(ours.conditioning))
    assert shard.sigma[-1] == 0
    assert shard.sigma[0] == pytest.approx(1.0)
    assert np.allclose(shard.timestep, shard.sigma[:-1] * 1000)
    assert shard.preview_png.tobytes().startswith(b"\x89PNG")
    assert seen[:4] == [f"step {i}/4" for i in range(1, 5)]


def test_half_precision_keeps_what_the_transformer_sees(cache: object) -> None:
    settings = msgspec.structs.replace(SETTINGS, precision="float16")
    task = CalibrationTask(run=settings, store_id="relay", image_index=0, prompt=PROMPTS[0], seed=0)
    shard = calibrate(task, load_model(settings), lambda progress: None)
    assert shard.x.dtype == shard.conditioning.dtype == np.float16
    assert np.isfinite(shard.x).all()


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
        _TinyFlux(load_tiny_flux(tmp_path)), "a tree", seed=3, num_steps=3, cfg_weight=0.0, latent_size=(8, 8)
    )
    judge = _TinyFlux(load_tiny_flux(tmp_path))
    conditioning, pooled = judge.encode_text("a tree", 0.0, "")
    latent, _ = judge.denoise_latents(
        conditioning, pooled, num_steps=3, cfg_weight=0.0, latent_size=(8, 8), seed=3
    )
    assert len(ours.x) == 4
    assert float(ours.sigmas[-1]) == 0
    assert np.array_equal(np.array(judge.latent_format.process_out(ours.x[-1])), np.array(latent))
