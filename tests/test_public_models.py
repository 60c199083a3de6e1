"""FLUX.1-schnell and -dev, SD3.5-large and SD3 with T5, tiny, through the public commands from end to end."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.settings import run_settings
from producer.cli import main as producer
from producer.folder.calib_folder import CalibFolder
from producer.jobs.redis_server import RedisServer
from producer.results.results import Results, decode_results
from shared.layout.reader import read_samples
from shared.models import PARTS
from shared.runs import RunSettings
from tests.fleet import PROMPTS, ROOT
from tests.tiny_models import DEV, SCHNELL, SD3, SD35, tiny_tables, write_cache
from worker.cli import main as worker
from worker.families.diffusionkit.loading import load_model

pytestmark = pytest.mark.slow

STEPS = 2
SIZE = 64


@dataclass(frozen=True)
class Case:
    """A model, what is asked of it, and what must be true of its run."""

    model: str
    options: tuple[str, ...]
    precision: str
    rows: int
    text_tokens: int
    layers: str

    @property
    def name(self) -> str:
        return self.model.rpartition("/")[2] + "".join(self.options)


CASES = [
    Case(SD3, ("--use-t5",), "float16", 2, 32 + 24, "multimodal_transformer_blocks.1.image_*.fc1"),
    Case(SD35, (), "float16", 2, 64, "multimodal_transformer_blocks.1.text_*.fc1"),
    Case(SCHNELL, (), "bfloat16", 1, 24, "unified_transformer_blocks.0.*.q_proj"),
    Case(DEV, (), "bfloat16", 1, 24, "guidance_in.mlp.layers.0,unified_transformer_blocks.1.*.fc2"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_cache(home)
    return home


@pytest.fixture(scope="module")
def folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where every case was calibrated, measured exactly and sketched, by two worker processes in all."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "prompts.csv").write_text("\n".join(["prompt", *PROMPTS]))
    environment = {
        **os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:

        def ask(command: str, case: Case, *options: str) -> str:
            arguments = [command, "--calib-dir", str(folder / case.name), "--redis-url", server.url]
            result = CliRunner().invoke(producer, [*arguments, *options])
            assert result.exit_code == 0, result.output
            return result.output

        def work() -> None:
            # Published models' names stand for tiny ones here: what those would need doesn't matter.
            limit = ("--memory-limit", "100GB")
            command = ["-m", "tests.tiny_worker", "start", "--burst", "--redis-url", server.url, *limit]
            done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr

        for case in CASES:
            output = ask(
                "enqueue-calibration", case, "--model", case.model, "--num-images", "1", "--num-steps",
                str(STEPS), "--image-size", str(SIZE), "--prompt-csv", str(folder / "prompts.csv"),
                *case.options,
            )  # fmt: skip
            assert f"published forward pass in {case.precision}" in output
        work()
        for case in CASES:
            assert "calibration: 1 of 1" in ask("collect", case)
            measured = ("--bits", "4", "--step-stride", "1")
            ask("enqueue-sensitivity", case, "--layers", case.layers, *measured)
            ask("enqueue-sensitivity", case, "--method", "sketch", "--probes", "2", *measured)
        work()
        for case in CASES:
            ask("collect", case)
        yield folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_samples_are_those_of_an_independent_loop(case: Case, folder: Path, home: Path) -> None:
    run = CalibFolder(folder / case.name).require_run()
    samples = list(read_samples(folder / case.name))
    assert samples[0].conditioning.shape == (case.rows, case.text_tokens, 4096)
    if case.precision == "bfloat16":
        # The latents enter as float32; text is what the encoder said in bfloat16, to the bit.
        assert samples[0].x.dtype == np.float32
        text = mx.array(samples[0].conditioning)
        assert mx.array_equal(text, text.astype(mx.bfloat16))
    wanted = draw(run.settings, run.prompts[0], home)
    # A loop that sums in another order rounds some activations otherwise, of 8 bits in bfloat16 and of 11 in
    # float16, and guidance multiplies what they differ by.
    tolerance = 1e-2 if case.precision == "bfloat16" else 5e-3
    for sample, latent in zip(samples, wanted, strict=True):
        assert np.linalg.norm(sample.x - latent) < tolerance * np.linalg.norm(latent)


def draw(run: RunSettings, prompt: str, home: Path) -> list[np.ndarray]:
    """Euler's steps written out: the latents that enter each."""
    with pytest.MonkeyPatch.context() as patch, tiny_tables():
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
        pipeline: Any = load_model(run).pipeline
        encoded = pipeline.encode_text(prompt, run.cfg_weight, "")
    rows, dtype = 2 if run.cfg_weight else 1, pipeline.activation_dtype
    text, pooled = (array[:rows].astype(dtype) for array in encoded)
    flux = "FLUX" in run.model
    # SD3's schedule ends at the sampler's smallest noise level, which is shifted once more.
    times = np.linspace(1, 0, STEPS + 1) if flux else [1.0, shifted(1 / 1000, run.shift), 0.0]
    sigmas = [shifted(time, run.shift) for time in times]
    x = np.random.RandomState(run.seed).randn(1, 16, SIZE // 8, SIZE // 8).transpose(0, 2, 3, 1)
    entered = []
    for sigma, following in pairwise(sigmas):
        entered.append(x)
        timestep = (mx.array(sigma).astype(dtype) * 1000) if flux else mx.array(1000 * sigma)
        x = x + (following - sigma) * velocity(pipeline.mmdit, x, timestep, text, pooled, run.cfg_weight)
    return entered


def shifted(time: float, shift: float) -> float:
    return shift * time / (1 + (shift - 1) * time)


def velocity(
    mmdit: Any, x: np.ndarray, timestep: mx.array, text: mx.array, pooled: mx.array, cfg_weight: float
) -> np.ndarray:
    timesteps = mx.repeat(timestep[None], len(text))
    inputs = mmdit.modulation_inputs(pooled, timesteps)
    for module in mmdit.modules():
        if hasattr(module, "adaLN_modulation"):
            module._modulation_params = {timestep.item(): module.adaLN_modulation(inputs)}
    latent = mx.repeat(mx.array(x.astype(np.float32)), len(text), axis=0).astype(text.dtype)
    output = np.array(mmdit(latent, text[:, :, None, :], timesteps).astype(mx.float32))
    return output if len(output) == 1 else output[1:] + cfg_weight * (output[:1] - output[1:])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_exact_and_sketch_agree_and_there_is_a_report(case: Case, folder: Path) -> None:
    calib = folder / case.name
    assert (calib / "previews/image-00000.png").read_bytes().startswith(b"\x89PNG")
    (path,) = calib.glob("sensitivity/*/results.json")
    assert "<html" in (calib / "report.html").read_text()
    results = decode_results(path.read_bytes())
    assert results.complete
    assert {pair.layer for pair in results.verified} == set(matching(case, results))
    assert len(results.measurements) == len(results.layers)
    for pair in results.verified:
        assert pair.exact_relative_error and pair.sketch_relative_error
        # Two probes a sample: right in size, no more.
        assert 0.2 < pair.sketch_relative_error / pair.exact_relative_error < 5


def matching(case: Case, results: Results) -> list[str]:
    globs = case.layers.split(",")
    return [row.path for row in results.layers if any(fnmatchcase(row.path, glob) for glob in globs)]


def test_a_card_says_whose_files_these_are(folder: Path) -> None:
    for case in CASES:
        card = CalibFolder(folder / case.name).read_model()
        assert card
        # Measuring loads the transformer alone, and has its fingerprint.
        assert card.parts.keys() == {"transformer", "text_encoder", "vae"}
        assert card.parts["transformer"] == card.fingerprint


def test_a_model_is_fetched_before_any_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    with tiny_tables():
        fetched = CliRunner().invoke(worker, ["fetch", SD35])
        assert fetched.exit_code == 0, fetched.output
        assert f"{SD35} is ready on this machine" in fetched.output
        printed = [line.partition(": sha256 ")[2] for line in fetched.output.splitlines()[:3]]
        settings = run_settings(model=SD35, reference="published")
        model = load_model(settings)
        assert printed == [model.part_fingerprints()[part][:12] for part in PARTS]
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "nothing"))
        missing = CliRunner().invoke(worker, ["fetch", SD35])
        assert missing.exit_code == 2
        assert "is not on this machine" in missing.output
