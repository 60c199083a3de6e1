"""A new family of models is one file and one line, and its models in a list, shown by adding one to a copy.

The toy is no MMDiT, and what it is told of a prompt has names of its own.
"""

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from producer.results.results import Results, decode_results
from shared.layout.reader import read_samples
from shared.layout.sample_file import Sample
from tests.copies import copy_packages, replace_in
from tests.fleet import ROOT, Fleet
from tests.toy_families import ToyFamily, TwoStreamFamily
from worker.engine.quantize import quantize_layer, swapped

pytestmark = pytest.mark.slow

MODEL = """MODELS["toy"] = ModelSpec(
    id="toy", family="toy", num_steps=3, image_size=64, cfg_weight=2.0, shift=1.0, precision="float32",
    text_encoder_t5="none", parameters=50_000, built_in=True,
    transformer=TransformerShape(width=64, heads=2, double_blocks=2),
)
"""
LAYERS = "image_blocks.1.up,text_blocks.0.qkv,image_out"


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """A copy of the packages with one family more."""
    root = copy_packages(tmp_path / "copy")
    transformers, family = (
        (ROOT / f"tests/toy_{part}.py").read_text() for part in ("transformers", "families")
    )
    file = root / "worker/families/toy.py"
    file.write_text(transformers + family)
    replace_in(file, "from tests.toy_transformers import ToyDiT, TwoStreams\n", "")
    replace_in(file, "return ToyFamily(settings.seed)", "return TwoStreamFamily(settings.seed)")
    line = '    "toy": "worker.families.toy",\n}'
    replace_in(root / "worker/families/registry.py", "}", line)
    with (root / "shared/models.py").open("a") as models:
        models.write(MODEL)
    return root


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str, extended: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path / "user", redis_url, tmp_path / "cache", root=extended)
    yield fleet
    fleet.close()


def test_one_file_and_one_line_make_a_family(fleet: Fleet) -> None:
    output = fleet.producer("enqueue-calibration", "--model", "toy", "--num-images", "2", "--seed", "5",
                            "--prompt-csv", "prompts.csv")  # fmt: skip
    assert "2 images enqueued" in output
    fleet.work()
    assert "calibration: 2 of 2" in fleet.producer("collect")
    measured = ("--bits", "4", "--group-size", "32", "--max-images", "2", "--step-stride", "1")
    fleet.producer("enqueue-sensitivity", "--layers", LAYERS, *measured)
    fleet.producer("enqueue-sensitivity", "--method", "sketch", "--probes", "16", *measured)
    fleet.work()
    fleet.producer("collect")
    samples = list(read_samples(fleet.calib))
    assert set(samples[0].named_conditioning) == {"tokens", "labels", "length"}
    assert samples[0].named_conditioning["length"].tolist() == [3, 3]
    toy = TwoStreamFamily(seed=5)
    for results in fleet.calib.glob("sensitivity/*/results.json"):
        check(decode_results(results.read_bytes()), toy, samples)


def check(results: Results, toy: ToyFamily, samples: list[Sample]) -> None:
    """Exact scores are those of whole passes over all samples; sketched ones are near them."""
    assert results.complete
    scores = {pair.layer: pair for pair in results.measurements}
    reference = velocities(toy, samples)
    for layer in LAYERS.split(","):
        candidate = quantize_layer(toy.transformer, layer, bits=4, group_size=32)
        with swapped(toy.transformer, layer, candidate.weight):
            error = ((velocities(toy, samples) - reference) ** 2).sum() / (reference**2).sum()
        found = scores[layer].buckets["all"].relative_error
        if scores[layer].standard_error is None:
            np.testing.assert_allclose(found**2, error, rtol=1e-3)
        else:
            assert error / 2 < found**2 < 2 * error


def velocities(toy: ToyFamily, samples: list[Sample]) -> np.ndarray:
    """The guided velocity of each sample, one by one."""
    return np.concatenate(
        [
            np.array(
                toy.direction(
                    mx.array(sample.x),
                    mx.array(sample.sigma),
                    {name: mx.array(array) for name, array in sample.named_conditioning.items()},
                    2.0,
                )
            )
            for sample in samples
        ]
    ).astype(np.float64)
