"""`producer inspect` on files that MLX wrote: what it reads off the shapes is how they were made."""

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner

from producer.cli import main as producer
from producer.inspection.inspect_checkpoint import Inspection, inspect_checkpoint
from producer.inspection.layers import Layer
from shared.choices import BITS, GROUP_SIZES
from shared.errors import InputError

WIDTH = 384
"""In whole groups of each size. No reading but the right one makes its half or its double a width."""
Tensors = dict[str, mx.array]


def packed(path: str, bits: int, group_size: int, shape: tuple[int, int] = (WIDTH, WIDTH)) -> Tensors:
    weight = mx.random.normal(shape).astype(mx.bfloat16)
    parts = mx.quantize(weight, group_size=group_size, bits=bits)
    return {f"{path}.{name}": part for name, part in zip(("weight", "scales", "biases"), parts, strict=True)}


def save(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(path), tensors, dict(metadata or {}))
    return path


def save_config(folder: Path, block: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps({"quantization": block, "hidden_size": 8}))


def by_path(inspection: Inspection) -> dict[str, Layer]:
    return {layer.path: layer for layer in inspection.layers}


ALL = list(product(BITS, GROUP_SIZES))


@pytest.mark.parametrize("labelled", [True, False])
def test_every_bit_width_and_group_size_is_read_off_the_shapes(labelled: bool, tmp_path: Path) -> None:
    tensors, block = {}, {"group_size": 64, "bits": 4}
    for bits, size in ALL:
        tensors |= packed(f"layers.{bits}.of.{size}", bits, size)
        block[f"layers.{bits}.of.{size}"] = {"group_size": size, "bits": bits}
    save(tmp_path / "model.safetensors", tensors)
    if labelled:
        save_config(tmp_path, block)
    inspection = inspect_checkpoint(tmp_path)
    assert len(inspection.layers) == len(ALL)
    for bits, size in ALL:
        layer = by_path(inspection)[f"layers.{bits}.of.{size}"]
        assert (layer.bits, layer.group_size, layer.shape) == (bits, size, (WIDTH, WIDTH))
        assert layer.bits_per_weight == bits + 32 / size
        assert layer.label == (f"{bits}/{size}" if labelled else None)
        assert layer.certain
    assert not inspection.all_problems
    assert inspection.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    assert inspection.other_bytes == 0


def test_inputs_that_no_other_layer_has_are_told_by_the_label_or_left_open(tmp_path: Path) -> None:
    tensors = packed("odd", 8, 32, (WIDTH, 1024)) | packed("plain", 4, 64)
    path = save(tmp_path / "one.safetensors", tensors)
    layer = by_path(inspect_checkpoint(path))["odd"]
    assert not layer.certain
    assert (layer.bits, layer.group_size) == (4, 64)
    save_config(tmp_path, {"group_size": 64, "bits": 4, "odd": {"group_size": 32, "bits": 8}})
    layer = by_path(inspect_checkpoint(path))["odd"]
    assert (layer.bits, layer.group_size, layer.shape, layer.problem) == (8, 32, (WIDTH, 1024), None)


def test_mflux_keeps_each_part_in_a_folder_and_the_bits_in_the_headers(tmp_path: Path) -> None:
    label = {"quantization_level": "4", "mflux_version": "0.24.0"}
    save(tmp_path / "transformer/0.safetensors", packed("blocks.0.to_q", 4, 64) | packed("up", 6, 32), label)
    save(tmp_path / "transformer/1.safetensors", packed("blocks.1.to_q", 4, 64), label)
    weight_map = {
        f"{path}.{part}": f"{number}.safetensors"
        for number, path in ((0, "blocks.0.to_q"), (0, "up"), (1, "blocks.1.to_q"))
        for part in ("weight", "scales", "biases")
    }
    (tmp_path / "transformer/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    save(tmp_path / "vae/0.safetensors", {"conv.weight": mx.zeros((8, 3, 3, 8), mx.bfloat16)}, label)
    inspection = inspect_checkpoint(tmp_path)
    assert [(layer.part, layer.stored_as) for layer in inspection.layers] == [
        ("transformer", "4/64"), ("transformer", "4/64"), ("transformer", "6/32"), ("vae", "bfloat16")
    ]  # fmt: skip
    assert inspection.all_problems == ("transformer/up: quantization_level says 4 bits, the shapes say 6/32",)


def test_one_file_of_diffusionkit_has_no_label_but_its_name(tmp_path: Path) -> None:
    prefix = "model.diffusion_model.joint_blocks.0.x_block"
    tensors = packed(f"{prefix}.mlp.fc1", 4, 64, (4 * WIDTH, WIDTH))
    tensors |= packed(f"{prefix}.mlp.fc2", 4, 64, (WIDTH, 4 * WIDTH))
    tensors["first_stage_model.decoder.norm_out.weight"] = mx.zeros((8,), mx.float16)
    inspection = inspect_checkpoint(save(tmp_path / "sd3.5_large_4bit_quantized.safetensors", tensors))
    assert {layer.stored_as for layer in inspection.layers} == {"4/64"}
    assert {layer.label for layer in inspection.layers} == {"4 bits"}
    assert (inspection.tensors, inspection.other_bytes, inspection.all_problems) == (7, 16, ())


def test_other_modes_of_mlx_have_no_biases(tmp_path: Path) -> None:
    tensors: Tensors = {}
    for mode in ("mxfp4", "nvfp4", "mxfp8"):
        weight, scales = mx.quantize(mx.random.normal((WIDTH, WIDTH)), mode=mode)
        tensors |= {f"{mode}.weight": weight, f"{mode}.scales": scales}
    layers = by_path(inspect_checkpoint(save(tmp_path / "model.safetensors", tensors)))
    assert {path: layer.stored_as for path, layer in layers.items()} == {mode: mode for mode in layers}
    assert {layer.shape for layer in layers.values()} == {(WIDTH, WIDTH)}
    assert [layers[mode].bits_per_weight for mode in ("mxfp4", "nvfp4", "mxfp8")] == [4.25, 4.5, 8.25]


def test_a_label_that_does_not_tell_the_truth_is_named(tmp_path: Path) -> None:
    tensors = packed("a.q", 8, 64) | packed("a.k", 8, 64) | packed("a.v", 2, 128) | packed("a.o", 3, 32)
    tensors |= {"dense.weight": mx.zeros((WIDTH, WIDTH), mx.float16), "norm.weight": mx.zeros((WIDTH,))}
    save(tmp_path / "model.safetensors", tensors)
    four, three = {"group_size": 64, "bits": 4}, {"group_size": 32, "bits": 3}
    save_config(tmp_path, four | {"a.o": three, "dense": four, "a.v": False})
    inspection = inspect_checkpoint(tmp_path)
    assert inspection.all_problems == (
        "a.k: config.json says 4/64, the shapes say 8/64",
        "a.q: config.json says 4/64, the shapes say 8/64",
        "a.v: config.json says not quantized, the shapes say 2/128",
        "dense: config.json says 4/64, but it is not quantized",
    )
    assert by_path(inspection)["a.o"].problem is None


def test_a_label_that_fits_the_shapes_at_another_width_is_named_too(tmp_path: Path) -> None:
    """4/64 and 2/128 have the same shapes, at inputs of which one is twice the other."""
    save(tmp_path / "model.safetensors", packed("a.q", 4, 64) | packed("a.k", 4, 64) | packed("a.o", 8, 64))
    save_config(tmp_path, {"group_size": 128, "bits": 2, "a.o": {"group_size": 64, "bits": 8}})
    assert inspect_checkpoint(tmp_path).all_problems == (
        "a.k: config.json says 2/128, the shapes say 4/64",
        "a.q: config.json says 2/128, the shapes say 4/64",
    )


def test_what_lacks_a_piece_is_named(tmp_path: Path) -> None:
    tensors = packed("no_scales", 4, 64) | packed("no_biases", 4, 64) | packed("misfit", 4, 64)
    del tensors["no_scales.scales"], tensors["no_biases.biases"]
    tensors["misfit.scales"] = mx.zeros((WIDTH, 5))
    save(tmp_path / "a.safetensors", tensors)
    save(tmp_path / "b.safetensors", {"misfit.weight": tensors["misfit.weight"]})
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {"lost.weight": "c.safetensors"}
    del weight_map["misfit.biases"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    problems = "\n".join(inspect_checkpoint(tmp_path).all_problems)
    for says in (
        "no_scales: it is packed, but its scales are missing",
        "no_biases: its biases are missing or do not fit its scales",
        "misfit: shapes of weight (384, 48) and scales (384, 5) do not fit",
        "misfit.weight is in a.safetensors and in b.safetensors",
        "index.json has lost.weight in c.safetensors, which is not so",
        "index.json lacks misfit.biases",
    ):
        assert says in problems


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", None, "holds no .safetensors file"),
        ("model.safetensors", b"", "no whole safetensors file"),
        ("model.safetensors", b"cut", "no whole safetensors file"),
        ("config.json", b"{", "config.json is no JSON"),
        ("config.json", b"[]", "config.json holds no JSON object"),
        ("model.safetensors.index.json", b"{}", "it has no weight_map"),
    ],
)
def test_damaged_files_are_one_line_and_exit_code_2(
    name: str, content: bytes | None, says: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "model.safetensors", packed("q", 4, 64))
    if content is None:
        path.unlink()
    else:
        (tmp_path / name).write_bytes(path.read_bytes()[:-1] if content == b"cut" else content)
    result = CliRunner().invoke(producer, ["inspect", str(tmp_path)])
    assert (result.exit_code, says in result.output) == (2, True), result.output
    assert len(result.output.splitlines()) == 1


def test_the_command_prints_a_table_or_json_and_says_if_all_is_well(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", packed("block.q", 4, 64) | packed("block.k", 4, 64))
    save_config(tmp_path, {"group_size": 64, "bits": 4})
    result = CliRunner().invoke(producer, ["inspect", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[1].split() == ["block.k", "384", "x", "384", "4/64", "4.50", "82,944"]
    assert "the label is what the files hold" in result.output
    save_config(tmp_path, {"group_size": 64, "bits": 8})
    result = CliRunner().invoke(producer, ["inspect", str(tmp_path), "--json"])
    assert result.exit_code == 1
    value = json.loads(result.output)
    assert value["layers"][0]["stored_as"] == "4/64"
    assert value["problems"] == [
        f"block.{name}: config.json says 8/64, the shapes say 4/64" for name in ("k", "q")
    ]
    with pytest.raises(InputError, match="there is no"):
        inspect_checkpoint(tmp_path / "nothing")
