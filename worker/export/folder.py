"""Reading an exported folder: what it says of itself, and its tensors."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from safetensors import SafetensorError, safe_open

from shared.decoding import decode
from shared.errors import ModelUnavailableError
from shared.exported import (
    CONFIG,
    INDEX,
    ExportConfig,
    WeightIndex,
    config_decoder,
    index_decoder,
)
from shared.plan import Choice
from shared.quantization_block import choice_in

_REMEDY = "; export it again, or copy it again from where it is whole"


class ExportFolder:
    """A folder that `producer export` wrote. Opening it reads no weights."""

    def __init__(self, folder: Path) -> None:
        """Open a folder, and look at the header of each of its files.

        Raises:
            ModelUnavailableError: this is no exported model, or a file is missing or damaged.
        """
        self.path = folder
        self.config: ExportConfig = self._read(CONFIG, config_decoder)
        self._index: WeightIndex = self._read(INDEX, index_decoder)
        for name in sorted(set(self._index.weight_map.values())):
            self._check(name)

    @cached_property
    def layers(self) -> Mapping[str, Choice]:
        """Choice of each quantized layer, by dotted MLX path."""
        layers = {}
        for name in self._index.weight_map:
            path, _, part = name.rpartition(".")
            if part == "scales":
                choice = choice_in(self.config.quantization, path)
                if choice is None:
                    raise ModelUnavailableError(
                        f"{self.path / CONFIG} does not say how {path} is quantized{_REMEDY}"
                    )
                layers[path] = choice
        return layers

    def tensors(self) -> dict[str, mx.array]:
        """Every tensor, lazy, as it was written."""
        tensors: dict[str, mx.array] = {}
        for name in sorted(set(self._index.weight_map.values())):
            held: Any = mx.load(str(self.path / name))
            tensors |= held
        return tensors

    def _read(self, name: str, decoder: msgspec.json.Decoder[Any]) -> Any:
        path = self.path / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelUnavailableError(
                f"{self.path} is no model that `producer export` wrote: {name}: {error.strerror}"
            ) from None
        return decode(
            decoder, data, ModelUnavailableError, f"{path} is not that of an exported model", remedy=_REMEDY
        )

    def _check(self, name: str) -> None:
        """MLX reads what lies beyond a file's end as anything; the header tells how long it must be."""
        path, wanted = self.path / name, {t for t, file in self._index.weight_map.items() if file == name}
        if Path(name).name != name:
            raise ModelUnavailableError(f"{self.path / INDEX} names {name!r}, a file outside of the folder")
        try:
            with safe_open(path, framework="numpy") as file:
                held = set(file.keys())
        except (SafetensorError, OSError) as error:
            raise ModelUnavailableError(f"{path} is damaged or missing ({error}){_REMEDY}") from None
        if held != wanted:
            raise ModelUnavailableError(f"{path} and {INDEX} disagree on {min(held ^ wanted)}{_REMEDY}")
