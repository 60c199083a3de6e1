"""Exported models hold what a verification held, and DiffusionKit's pipeline draws its images with them."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import mlx.core as mx
import mlx.nn as nn
import pytest
from click.testing import CliRunner
from humanfriendly import format_size
from mlx.utils import tree_flatten
from msgspec.structs import replace

from producer.cli import main as producer
from producer.export import export_plan
from producer.export.target_folder import whole_folder
from producer.inspection.inspect_checkpoint import inspect_checkpoint
from producer.settings import run_settings
from shared.errors import InputError, ModelUnavailableError
from shared.exported import ExportRequest, Origin
from shared.plan import Choice, Variant
from shared.plan_file import encode_plan, read_plan
from shared.runs import RunSettings
from tests.plans import plan_of
from tests.tiny_models import DEV, SCHNELL, SD3, SD35, tiny_tables, write_cache
from worker.engine.trajectory import denoise
from worker.engine.variants import as_variant
from worker.export.program import export
from worker.families.diffusionkit import files as model_files
from worker.families.diffusionkit import tiny_checkpoint
from worker.families.family import Family
from worker.families.registry import load_family
from worker.load import load_quantized, predicate

pytestmark = pytest.mark.slow

PROMPTS = ("a red circle", "a small blue square on a grey background")
CHOICES = [Choice(bits=bits, group_size=size) for bits, size in ((4, 64), (2, 32), (8, 64), (3, 32), (6, 64))]
PATCHES = "x_embedder.proj"
"""A convolution, for which MLX has no quantized module."""


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tiny models under the public ids, in a Hugging Face cache and in ours."""
    home = tmp_path_factory.mktemp("home")
    write_cache(home)
    with pytest.MonkeyPatch.context() as patch, tiny_tables():
        for module in (tiny_checkpoint, model_files):
            patch.setattr(module, "user_cache_path", lambda name: home / name)
        # The exporter's process finds them, too.
        patch.setenv("XDG_CACHE_HOME", str(home))
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


TINY = settings("tiny-sd3", reference="diffusionkit")
CASES = {
    "sd3": settings(SD3, use_t5=True),
    "sd3.5": settings(SD35),
    "schnell": settings(SCHNELL),
    "dev": settings(DEV),
    "by diffusionkit": TINY,
}


@pytest.mark.parametrize("case", CASES)
def test_an_exported_model_draws_what_a_verification_draws(case: str, tmp_path: Path) -> None:
    run, folder = CASES[case], tmp_path / "export"
    original, layers = export_of(run, folder)
    assert PATCHES in layers
    loaded = load_quantized(folder)
    with as_variant(original.transformer, Variant(name="plan", layers=layers)):
        # The second image comes after another one.
        for seed, prompt in enumerate(PROMPTS):
            options = {"num_steps": 1, "cfg_weight": run.cfg_weight}
            wanted = denoise(original, prompt, seed=seed, latent_size=(8, 8), **options).x[-1]
            assert mx.array_equal(loaded.denoise(prompt, seed=seed), wanted)
        ours, theirs = (dict(tree_flatten(f.transformer.parameters())) for f in (loaded.family, original))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype
            assert mx.array_equal(tensor, theirs[name]), name
    assert loaded.layers == {path: choice for path, choice in layers.items() if path != PATCHES}


@dataclass(frozen=True)
class Exported:
    """What `producer export` wrote, called as a user would call it."""

    folder: Path
    plan: Path
    layers: Mapping[str, Choice]
    output: str


@pytest.fixture(scope="module")
def exported(home: Path) -> Exported:
    family = load_family(TINY)
    folder, plan, layers = home / "exported", home / "plan.json", mixed(family)
    plan.write_bytes(encode_plan(plan_of(TINY, family.fingerprint, layers)))
    return Exported(folder, plan, layers, command("--plan", str(plan), "--out", str(folder)))


def command(*arguments: str, code: int = 0) -> str:
    """What `producer export` prints."""
    result = CliRunner().invoke(producer, ["export", *arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter runs in this process, where its libraries are loaded already."""
    monkeypatch.setattr(export_plan, "write_model", export)


def test_the_command_writes_a_folder_that_says_what_it_holds(exported: Exported) -> None:
    assert {path.name for path in exported.folder.iterdir()} == {
        "config.json", "model.safetensors", "model.safetensors.index.json", "README.md", "plan.json"
    }  # fmt: skip
    inspection = inspect_checkpoint(exported.folder)
    assert not inspection.all_problems
    packed = {
        layer.path: Choice(bits=layer.bits, group_size=layer.group_size) for layer in inspection.quantized
    }
    assert packed == {path: choice for path, choice in exported.layers.items() if path != PATCHES}
    assert format_size(inspection.nbytes) in exported.output
    assert f"**{format_size(inspection.nbytes)}**" in (exported.folder / "README.md").read_text()
    index = json.loads((exported.folder / "model.safetensors.index.json").read_bytes())
    assert index["metadata"]["total_size"] == inspection.nbytes
    original = dict(tree_flatten(load_family(TINY).transformer.parameters()))
    assert index["metadata"]["total_parameters"] == sum(tensor.size for tensor in original.values())
    assert (exported.folder / "plan.json").read_bytes() == exported.plan.read_bytes()


def test_an_earlier_export_is_replaced_only_by_force_and_other_folders_never(
    exported: Exported, no_process: None, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    asked = ("--plan", str(exported.plan), "--out", str(folder))
    # An attempt that was killed left this.
    (tmp_path / ".out.partial/half").mkdir(parents=True)
    command(*asked)
    before = (folder / "model.safetensors").stat().st_ino
    # The same once more: nothing but the README is written.
    (folder / "README.md").unlink()
    command(*asked)
    assert (folder / "README.md").is_file()
    assert (folder / "model.safetensors").stat().st_ino == before
    another = tmp_path / "another.json"
    another.write_bytes(encode_plan(replace(read_plan(exported.plan), score=0.5)))
    asked = ("--plan", str(another), "--out", str(folder))
    assert "holds an earlier export; --force replaces it" in command(*asked, code=2)
    command(*asked, "--force")
    assert (folder / "model.safetensors").stat().st_ino != before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "another.json"}
    (tmp_path / "precious.txt").write_text("")
    asked = ("--plan", str(exported.plan), "--out", str(tmp_path), "--force")
    assert "is not empty, and is no earlier export" in command(*asked, code=2)


def test_without_mlx_the_command_says_what_to_install(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlx.py").write_text("raise ImportError(\"No module named 'mlx'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    output = command("--plan", str(exported.plan), "--out", str(tmp_path / "out"), code=2)
    assert "'mlx'); in bitfleet's folder: pip install '.[worker]'" in output
    assert len(output.splitlines()) == 1
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fingerprint": "0" * 64}, "are not those that the plan was made for (000000000000)"),
        ({"layers": {"nowhere": CHOICES[0]}}, "this model has no layer 'nowhere'"),
        ({"run": replace(TINY, checkpoint_sha256="0" * 64)}, "give that file with --checkpoint"),
    ],
)
def test_a_plan_that_is_not_for_this_model_is_refused_and_leaves_nothing_behind(
    changes: dict[str, Any], says: str, exported: Exported, no_process: None, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(encode_plan(replace(read_plan(exported.plan), **changes)))
    output = command("--plan", str(path), "--out", str(tmp_path / "out"), code=2)
    assert says in output
    assert len(output.splitlines()) == 1
    assert not list(tmp_path.glob("*out*"))


def test_diffusionkits_own_loop_draws_the_same_image_after_image(exported: Exported) -> None:
    loaded = load_quantized(exported.folder)
    pipeline = loaded.pipeline
    for seed, prompt in enumerate(PROMPTS):
        text, pooled = pipeline.encode_text(prompt, 7.5, "")
        latent, _ = pipeline.denoise_latents(text, pooled, 1, 7.5, latent_size=(8, 8), seed=seed)
        ours = pipeline.latent_format.process_out(loaded.denoise(prompt, seed=seed))
        assert mx.array_equal(latent, ours)


def test_a_drawing_is_a_picture_and_takes_other_settings(exported: Exported) -> None:
    loaded = load_quantized(exported.folder)
    assert loaded.draw(PROMPTS[0], seed=3).startswith(b"\x89PNG")
    assert loaded.denoise(PROMPTS[0], image_size=128, num_steps=2, cfg_weight=0).shape == (1, 16, 16, 16)
    for size, says in ((100, "give a multiple of 16"), (256, "at most 128 pixels")):
        with pytest.raises(InputError, match=says):
            loaded.denoise(PROMPTS[0], image_size=size)


def test_the_config_is_what_mlx_lms_loader_takes(exported: Exported) -> None:
    """As in `mlx_lm.utils.load_model`: what the block names, else what has scales."""
    config = json.loads((exported.folder / "config.json").read_bytes())
    weights: Any = mx.load(str(exported.folder / "model.safetensors"))
    block = config["quantization"]
    assert config["quantization_config"] == block

    def class_predicate(path: str, module: Any) -> Any:
        if path in block:
            return block[path]
        return hasattr(module, "to_quantized") and f"{path}.scales" in weights

    transformer = load_family(TINY).transformer
    default = {name: block[name] for name in ("group_size", "bits")}
    nn.quantize(transformer, **default, class_predicate=class_predicate)
    transformer.load_weights(list(weights.items()), strict=True)


def test_a_predicate_quantizes_the_same_layers_in_the_same_way(exported: Exported) -> None:
    wanted: Any = mx.load(str(exported.folder / "model.safetensors"))
    transformer = load_family(TINY).transformer
    nn.quantize(transformer, class_predicate=predicate(exported.folder))
    for name, tensor in tree_flatten(transformer.parameters()):
        assert name.startswith(PATCHES) or mx.array_equal(tensor, wanted[name]), name
    for source in (exported.folder, exported.plan, exported.layers):
        said = predicate(source)
        choice = exported.layers["final_layer.linear"]
        linear, patches = nn.Linear(64, 64), nn.Conv2d(16, 64, 2, 2)
        assert said("final_layer.linear", linear) == {"group_size": choice.group_size, "bits": choice.bits}
        assert said("x_pos_embedder.pos_embed", nn.Embedding(64, 64)) is False
        assert said(PATCHES, patches) is False


def test_large_models_lie_in_several_files(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    export_of(TINY, whole)
    export_of(TINY, parts, max_file_bytes=300_000)
    files = sorted(path.name for path in parts.glob("*.safetensors"))
    assert files == [f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))]
    assert len(files) > 3
    assert not inspect_checkpoint(parts).all_problems
    one, many = (mx.load(str(whole / "model.safetensors")), load_quantized(parts).family.transformer)
    for name, tensor in tree_flatten(many.parameters()):
        assert mx.array_equal(tensor, one[name])


def damage(folder: Path, what: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if what == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif what == "gone":
        weights.unlink()
    elif what == "another tensor":
        mx.save_safetensors(str(weights), {"x": mx.zeros(3)})
    elif what == "another config":
        config.write_text("{}")
    elif what == "another choice":
        text = json.loads(config.read_bytes())
        text["quantization"]["final_layer.linear"] = {"group_size": 64, "bits": 5}
        config.write_text(json.dumps(text))
    elif what == "no choice":
        text = json.loads(config.read_bytes())
        text["quantization"] = {}
        config.write_text(json.dumps(text))
    else:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("cut", "model.safetensors is damaged or missing"),
        ("gone", "model.safetensors is damaged or missing"),
        ("another tensor", "model.safetensors and model.safetensors.index.json disagree on"),
        ("another config", "config.json is not that of an exported model"),
        ("another choice", "does not hold tiny-sd3"),
        ("no choice", "config.json does not say how"),
        ("no folder", "is no model that `producer export` wrote"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(
    what: str, says: str, exported: Exported, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported.folder, folder)
    damage(folder, what)
    with pytest.raises(ModelUnavailableError, match=says) as caught:
        load_quantized(folder)
    assert "\n" not in str(caught.value)


def test_two_exports_to_one_folder_do_not_mix(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("")
        with pytest.raises(InputError, match="another export to"), whole_folder(tmp_path / "out"):
            pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "out"]
