"""Costs are counted from shapes: those of DiffusionKit's own modules, and of numbers known beforehand."""

import re
from collections import Counter
from pathlib import Path

import pytest

from shared.choices import DEFAULT_MODEL
from shared.costs import TaskSize, cost_of, packed_bytes, passing_of
from shared.kinds.registry import NAMES
from shared.models import MODELS, ModelSpec, model_spec
from shared.plan import Choice
from shared.runs import RunSettings
from shared.stores.store import MAX_PORTABLE_BYTES
from tests.tasks import SETTINGS
from worker.families.diffusionkit.layers import linear_layers
from worker.families.diffusionkit.quiet_imports import quiet_imports
from worker.families.diffusionkit.small_models import DEMO, TINY_SD3

with quiet_imports():
    from diffusionkit.mlx.config import FLUX_DEV, FLUX_SCHNELL, SD3_2b, SD3_8b
    from diffusionkit.mlx.mmdit import MMDiT

SD3, SD35 = DEFAULT_MODEL, "argmaxinc/mlx-stable-diffusion-3.5-large"
SCHNELL, DEV = "argmaxinc/mlx-FLUX.1-schnell", "argmaxinc/mlx-FLUX.1-dev"
CONFIGS = {
    SD3: SD3_2b,
    SD35: SD3_8b,
    SCHNELL: FLUX_SCHNELL,
    DEV: FLUX_DEV,
    "tiny-sd3": TINY_SD3.mmdit_config("float32"),
    "demo": DEMO.mmdit_config("float32"),
}
CHOICES = [Choice(bits=bits, group_size=size) for bits in (2, 3, 4, 5, 6, 8) for size in (32, 64, 128)]
GB = 10**9


def size_of(spec: ModelSpec, image_size: int, **changes: object) -> TaskSize:
    run = RunSettings(
        model=spec.id,
        num_steps=spec.num_steps,
        cfg_weight=spec.cfg_weight,
        image_size=image_size,
        seed=0,
        shift=spec.shift,
        use_t5=spec.text_encoder_t5 == "required",
        precision=spec.precision,
        prompts_sha256="a" * 64,
    )
    return TaskSize.of(run, spec, **changes)


@pytest.mark.parametrize("model", MODELS)
def test_shapes_are_those_of_diffusionkits_modules(model: str) -> None:
    # Nothing is allocated: MLX draws a weight when it is first read.
    layers = linear_layers(MMDiT(CONFIGS[model]))
    shape = MODELS[model].transformer
    assert Counter((layer.outputs, layer.inputs) for layer in shape.linear_layers) == (
        Counter(layer.shape for layer in layers)
    )
    assert 0.99 < shape.weights / MODELS[model].parameters < 1


@pytest.mark.parametrize(
    ("model", "layers", "billions", "adaln", "teraflops", "packed", "deltas", "at_4_5_bits"),
    [
        (SD3, 341, 2.03, 0.33, (3.6, 16.9), 23.9, 146, 1.14),
        (SD35, 537, 8.05, 0.33, (13.7, 59.2), 95, 580, 4.5),
        (SCHNELL, 540, 11.9, 0.27, (17.7, 69.5), 140, 856, 6.7),
    ],
)
def test_what_is_known_of_the_public_models(
    model: str,
    layers: int,
    billions: float,
    adaln: float,
    teraflops: tuple[float, float],
    packed: float,
    deltas: float,
    at_4_5_bits: float,
) -> None:
    spec = model_spec(model)
    linear = spec.transformer.linear_layers
    vectors = sum(layer.weights for layer in linear if layer.reads == "vector")
    assert len(linear) == layers
    assert spec.transformer.weights / 1e9 == pytest.approx(billions, rel=0.005)
    assert vectors / spec.transformer.weights == pytest.approx(adaln, abs=0.01)
    found = [cost_of("calibration", spec, size_of(spec, px)).forward_flops / 1e12 for px in (512, 1024)]
    assert found == pytest.approx(teraflops, rel=0.02)
    assert packed_bytes(spec, CHOICES) / GB == pytest.approx(packed, rel=0.02)
    assert 4 * spec.transformer.weights * len(CHOICES) / GB == pytest.approx(deltas, rel=0.01)
    plan = packed_bytes(spec, [Choice(bits=4, group_size=64)]) / GB
    assert plan == pytest.approx(at_4_5_bits, rel=0.02)


def test_passes_that_were_measured_or_counted() -> None:
    spec = model_spec(SD3)

    def passes(kind: str, **changes: object) -> float:
        return cost_of(kind, spec, size_of(spec, 512, **changes)).forward_passes

    assert passes("calibration") == 50
    assert [passes("sketch", probes=probes) for probes in (1, 2, 4)] == (
        pytest.approx([4.5, 7.2, 14.1], rel=0.07)
    )
    assert passes("levels") == passes("confirm") == 50 * 5.5
    assert passes("verification", variants=3) == 150
    assert passes("weights") == 0
    # 340 layers in 18 ways on 80 samples take 255,000 forward passes.
    pairs = 340 * len(CHOICES)
    assert pairs * passes("sensitivity", samples=80) == pytest.approx(255_000, rel=0.02)


@pytest.mark.parametrize(
    ("model", "image_size", "all_at_once"),
    [(SD3, 512, 8.7), (SD3, 1024, 26.8), (SD35, 1024, 55), (SCHNELL, 1024, 47)],
)
def test_a_backward_trajectory_takes_less_than_with_all_heads_at_once(
    model: str, image_size: int, all_at_once: float
) -> None:
    spec = model_spec(model)
    size = size_of(spec, image_size)
    scores = 5 * passing_of(spec, size).scores_bytes(spec.transformer.heads)
    peak = cost_of("levels", spec, size).peak_bytes
    assert spec.weight_bytes < peak < all_at_once * GB
    if image_size == 1024:
        assert peak < all_at_once * GB - scores / 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", MODELS)
def test_every_kind_has_a_cost_and_travels_small(name: str, model: str) -> None:
    spec = model_spec(model)
    size = size_of(spec, spec.image_size, samples=64, probes=8, candidates=CHOICES, variants=4)
    cost = cost_of(name, spec, size)
    assert 0 < cost.shard_bytes < MAX_PORTABLE_BYTES
    assert cost.blob_bytes < MAX_PORTABLE_BYTES
    assert cost.peak_bytes > spec.weight_bytes


def test_a_task_takes_its_size_from_its_run() -> None:
    size = TaskSize.of(SETTINGS, model_spec(SETTINGS.model))
    assert (size.rows, size.text_tokens, size.num_steps, size.image_size) == (2, 64, 4, 64)
    assert size_of(model_spec(SCHNELL), 512).rows == 1
    # CLIP encoders in float16 take 1.6 GB, T5 9.5 more.
    spec = model_spec(SD3)
    encoders = [spec.text_encoder_bytes(use_t5=use_t5) / GB for use_t5 in (False, True)]
    assert encoders == pytest.approx([1.64, 11.16], abs=0.01)


def test_the_table_for_a_mac_holds_what_is_counted() -> None:
    text = (Path(__file__).parent.parent / "docs" / "performance.md").read_text()
    told = re.findall(r"^\| .* h \| .* h \| ([\d.]+) GB \|$", text, re.MULTILINE)
    spec = model_spec(SD3)
    size = TaskSize(
        image_size=512,
        num_steps=50,
        rows=2,
        text_tokens=spec.text_tokens(use_t5=False),
        text_encoder_bytes=spec.text_encoder_bytes(use_t5=False),
        samples=80,
        probes=4,
        variants=5,
    )
    kinds = ("calibration", "sensitivity", "sketch", "levels", "verification")
    assert told == [f"{cost_of(kind, spec, size).peak_bytes / GB:.1f}" for kind in kinds]
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert f"| peak memory of the worker | {max(told, key=float)} GB: " in readme
