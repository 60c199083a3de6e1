"""Quantizing a transformer, and writing it, one file of tensors at a time."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from shared.exported import CONFIG, INDEX, ExportConfig, Origin, WeightIndex, encode_indented
from shared.files import write_atomically
from shared.plan import Choice
from shared.quantization_block import quantization_block
from worker.engine.layers import find_linear, get_weight, set_weight
from worker.engine.quantize import check_measurable, fake_quantize
from worker.export.predicate import predicate_of

Progress = Callable[[int, int], None]
"""Told how many tensors of how many are written."""


def quantize(transformer: Any, layers: Mapping[str, Choice]) -> dict[str, Choice]:
    """Quantize layers of a transformer for good, lazily, as a verification does for a while.

    A patch embedding that is a convolution, for which MLX has no quantized module, gets the same numbers as a
    weight of its own dtype.

    Returns:
        The layers that are packed now: all but such convolutions.

    Raises:
        TaskRefusedError: no such layer, or MLX can't quantize it like this.
    """
    for path, choice in layers.items():
        check_measurable(transformer, path, bits=choice.bits, group_size=choice.group_size)
    packed = {path: c for path, c in layers.items() if isinstance(find_linear(transformer, path), nn.Linear)}
    for path, choice in layers.items():
        if path not in packed:
            weight = get_weight(transformer, path)
            rounded, _ = fake_quantize(weight, bits=choice.bits, group_size=choice.group_size)
            set_weight(transformer, path, rounded)
    nn.quantize(transformer, class_predicate=predicate_of(packed))
    return packed


def write_quantized(
    transformer: Any,
    packed: Mapping[str, Choice],
    origin: Origin,
    folder: Path,
    *,
    max_file_bytes: int,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write tensors, index and config.json into an empty folder. The transformer loses its weights by it.

    Args:
        transformer: quantized.
        packed: which of its layers are, and how; of `quantize`.
        origin: what it was made from.
        folder: an empty folder.
        max_file_bytes: of one file; a larger tensor gets a file of its own.
        progress: called after each tensor.

    Raises:
        OSError: the disk is full or can't be written.
    """
    kept = [path for path, module in transformer.named_modules() if hasattr(module, "to_quantized")]
    weight_map, metadata = _write_tensors(transformer, folder, max_file_bytes, progress)
    block = quantization_block(packed, sorted(kept))
    config = ExportConfig(bitfleet=origin, quantization=block, quantization_config=block)
    index = WeightIndex(metadata=metadata, weight_map=weight_map)
    write_atomically(folder / INDEX, encode_indented(index))
    write_atomically(folder / CONFIG, encode_indented(config))


def _write_tensors(
    transformer: Any, folder: Path, max_file_bytes: int, progress: Progress
) -> tuple[dict[str, str], dict[str, int]]:
    tensors: dict[str, mx.array] = dict(tree_flatten(transformer.parameters()))
    total, metadata = len(tensors), _metadata(transformer, tensors)
    # What is written is let go: beside one file's tensors, only weights not yet asked for are left.
    transformer.update(tree_map(lambda _: mx.array([]), transformer.parameters()))
    files: list[list[str]] = []
    written = 0
    for file in _files(tensors, max_file_bytes):
        for array in file.values():
            mx.eval(array)
            written += 1
            progress(written, total)
        _save(folder / str(len(files)), file)
        files.append(list(file))
        file.clear()
        mx.clear_cache()
    weight_map: dict[str, str] = {}
    for number, held in enumerate(files):
        name = _file_name(number, len(files))
        (folder / f"{number}.safetensors").rename(folder / name)
        weight_map |= dict.fromkeys(held, name)
    return dict(sorted(weight_map.items())), metadata


def _files(tensors: dict[str, mx.array], max_file_bytes: int) -> Iterator[dict[str, mx.array]]:
    """Empty `tensors` into dicts of at most so many bytes, in the order of the modules."""
    file: dict[str, mx.array] = {}
    size = 0
    for name in list(tensors):
        array = tensors.pop(name)
        if file and size + array.nbytes > max_file_bytes:
            yield file
            file, size = {}, 0
        file[name] = array
        size += array.nbytes
    if file:
        yield file


def _save(path: Path, file: dict[str, mx.array]) -> None:
    """Write one file, whole and flushed; MLX adds the suffix."""
    try:
        mx.save_safetensors(str(path), file, metadata={"format": "mlx"})
    except RuntimeError as error:
        # MLX doesn't say why a stream failed.
        raise OSError(f"can't write {path}.safetensors ({error}); is the disk full?") from None
    with path.with_suffix(".safetensors").open("rb") as written:
        os.fsync(written.fileno())


def _file_name(number: int, count: int) -> str:
    """As mlx-lm names them."""
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _metadata(transformer: Any, tensors: dict[str, mx.array]) -> dict[str, int]:
    """Sizes, as mlx-lm writes them: a quantized weight counts as many parameters as it stands for."""
    packed = {
        f"{path}.weight": module.bits
        for path, module in transformer.named_modules()
        if isinstance(module, nn.QuantizedLinear)
    }
    stored = {name.removesuffix("weight") + part for name in packed for part in ("scales", "biases")}
    return {
        "total_size": sum(array.nbytes for array in tensors.values()),
        "total_parameters": sum(
            array.size * 32 // packed[name] if name in packed else array.size
            for name, array in tensors.items()
            if name not in stored
        ),
    }
