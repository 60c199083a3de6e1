"""Exported models hold what a verification held, and DiffusionKit's pipeline draws its images with them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from msgspec.structs import replace

from producer.settings import run_settings
from shared.exported import ExportRequest, Origin
from shared.plan import Choice
from shared.runs import RunSettings
from tests.tiny_models import DEV, SCHNELL, SD3, SD35, tiny_tables, write_cache
from worker.engine.trajectory import denoise
from worker.export.program import export
from worker.families.diffusionkit import files as model_files
from worker.families.diffusionkit import tiny_checkpoint
from worker.families.family import Family
from worker.families.registry import load_family
from worker.load import load_quantized

pytestmark = pytest.mark.slow

PROMPTS = ("a red circle", "a small blue square on a grey background")
CHOICES = [Choice(bits=bits, group_size=size) for bits, size in ((4, 64), (2, 32), (8, 64), (3, 32), (6, 64))]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tiny models under the public ids, in a Hugging Face cache and in ours."""
    home = tmp_path_factory.mktemp("home")
    write_cache(home)
    with pytest.MonkeyPatch.context() as patch, tiny_tables():
        for module in (tiny_checkpoint, model_files):
            patch.setattr(module, "user_cache_path", lambda name: home / name)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
        yield home


def settings(model: str, **options: Any) -> RunSettings:
    base: dict[str, Any] = dict.fromkeys(("cfg_weight", "use_t5", "checkpoint"))
    return run_settings(
        **base | {"model": model, "prompts": PROMPTS, "num_steps": 1, "image_size": 64, "seed": 0} | options
    )


def mixed(family: Family) -> dict[str, Choice]:
    """Another choice for each layer; every seventh keeps its weight.

    In float16 four of five keep it, for there a CPU multiplies quantized weights thirty times slower.
    """
    paths = [layer.path for layer in family.layers]
    half = family.dtype == mx.float16
    picked = [path for i, path in enumerate(paths) if (i % 5 == 0 if half else i % 7 != 6)]
    return {path: CHOICES[i % len(CHOICES)] for i, path in enumerate(picked)}


def export_of(run: RunSettings, folder: Path, **changes: Any) -> tuple[Family, dict[str, Choice]]:
    """The original, and what was exported of it into an empty folder."""
    family = load_family(run)
    layers = mixed(family)
    folder.mkdir()
    origin = Origin(run=run, fingerprint=family.fingerprint, plan_id="p")
    export(replace(ExportRequest(origin=origin, layers=layers), **changes), folder)
    return family, layers


def by_hand(transformer: Any, layers: Mapping[str, Choice]) -> None:
    """Put nn.QuantizedLinear, or rounded weights of a convolution, into a transformer."""
    for path, choice in layers.items():
        *way, name = path.split(".")
        parent = transformer
        for step in way:
            parent = parent[int(step)] if isinstance(parent, list) else getattr(parent, step)
        module = parent[int(name)] if isinstance(parent, list) else getattr(parent, name)
        options = {"group_size": choice.group_size, "bits": choice.bits}
        if isinstance(module, nn.Conv2d):
            packed = mx.quantize(module.weight.reshape(len(module.weight), -1), **options)
            module.weight = mx.dequantize(*packed, **options).reshape(module.weight.shape)
        elif isinstance(parent, list):
            parent[int(name)] = nn.QuantizedLinear.from_linear(module, **options)
        else:
            setattr(parent, name, nn.QuantizedLinear.from_linear(module, **options))


CASES = {
    "sd3": settings(SD3, use_t5=True),
    "sd3.5": settings(SD35),
    "schnell": settings(SCHNELL),
    "dev": settings(DEV),
    "by diffusionkit": settings("tiny-sd3", reference="diffusionkit"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_exported_model_draws_what_the_quantized_original_draws(case: str, tmp_path: Path) -> None:
    run, folder = CASES[case], tmp_path / "export"
    original, layers = export_of(run, folder)
    by_hand(original.transformer, layers)
    loaded = load_quantized(folder)
    # The second image comes after another one.
    for seed, prompt in enumerate(PROMPTS):
        options = {"num_steps": 1, "cfg_weight": run.cfg_weight}
        wanted = denoise(original, prompt, seed=seed, latent_size=(8, 8), **options).x[-1]
        assert mx.array_equal(loaded.denoise(prompt, seed=seed), wanted), case
    ours, theirs = (dict(tree_flatten(f.transformer.parameters())) for f in (loaded.family, original))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert mx.array_equal(tensor, theirs[name]), name
