"""Names, shapes and dtypes of all tensors of a checkpoint. No weight is read."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from shared.errors import InputError

SUFFIX = ".safetensors"
_BITS = {"BOOL": 8, "F64": 64, "F32": 32, "F16": 16, "BF16": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One stored tensor."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors calls it: "U32", "F16", "BF16"."""

    @property
    def bits(self) -> int:
        """Of one element."""
        return _BITS.get(self.dtype) or int("".join(c for c in self.dtype.partition("_")[0] if c.isdigit()))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        return self.size * self.bits // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The tensors of one folder, or of one file that was named by itself."""

    name: str
    """Path of the folder below the one that was asked for; empty for that one."""
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    """Of the files' headers."""
    config: Mapping[str, Any]
    """config.json; empty if there is none."""
    problems: Sequence[str]
    """Where files and index disagree."""


def read_parts(path: Path) -> list[Part]:
    """Read the headers of a file, or of all safetensors files in a folder and in the folders below it.

    Raises:
        InputError: there is none, one is damaged, or a config.json is no JSON object.
    """
    if path.is_file():
        return [_part("", path.parent, [path], index=False)]
    if not path.is_dir():
        raise InputError(f"there is no {path}; name a {SUFFIX} file, or a folder that holds some")
    folders: dict[Path, list[Path]] = {}
    for file in sorted(path.rglob(f"*{SUFFIX}")):
        if not file.name.startswith("."):
            folders.setdefault(file.parent, []).append(file)
    if not folders:
        raise InputError(f"{path} holds no {SUFFIX} file")
    return [
        _part("" if folder == path else folder.relative_to(path).as_posix(), folder, files, index=True)
        for folder, files in folders.items()
    ]


def _part(name: str, folder: Path, files: Sequence[Path], *, index: bool) -> Part:
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    file_of: dict[str, str] = {}
    problems = []
    for file in files:
        held, said = _header(file)
        problems += [f"{key} is in {file_of[key]} and in {file.name}" for key in held if key in file_of]
        tensors |= held
        metadata |= said
        file_of |= dict.fromkeys(held, file.name)
    if index:
        problems += _compare_index(folder, file_of)
    return Part(
        name=name,
        tensors=tensors,
        metadata=metadata,
        config=_json(folder / "config.json"),
        problems=problems,
    )


def _header(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            tensors = {
                name: Tensor(shape=tuple(s.get_shape()), dtype=s.get_dtype()) for name, s in slices.items()
            }
            return tensors, opened.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{file} is no whole safetensors file ({error}); copy it again") from None


def _compare_index(folder: Path, file_of: Mapping[str, str]) -> list[str]:
    """mlx-lm names the file of each tensor in an index; a file that is left out of it is not loaded."""
    problems = []
    for path in sorted(folder.glob(f"*{SUFFIX}.index.json")):
        weight_map = _json(path).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{path} is no index: it has no weight_map")
        problems += [
            f"{path.name} has {name} in {file}, which is not so"
            for name, file in weight_map.items()
            if file_of.get(name) != file
        ]
        problems += [f"{path.name} lacks {name}" for name in file_of if name not in weight_map]
    return problems


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object")
    return value
