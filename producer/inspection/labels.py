"""What a checkpoint says of itself: in config.json, in the headers of its files, or in its name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from producer.inspection.tensors import Part

_NAME = re.compile(r"(?<!\d)([1-8])[-_ ]?bit", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """How a layer is said to be stored. What is None is not said."""

    bits: int | None
    """None with no group size: the layer keeps its weight."""
    group_size: int | None
    source: str
    """Where it is said."""

    @property
    def text(self) -> str:
        """A short name: "4/64", "4 bits", "not quantized"."""
        if self.bits is None:
            return "not quantized"
        return f"{self.bits} bits" if self.group_size is None else f"{self.bits}/{self.group_size}"

    def fits(self, bits: int, group_size: int) -> bool:
        """Return whether this is what the label says."""
        return self.bits == bits and self.group_size in (None, group_size)


class Labels:
    """The labels of one part."""

    def __init__(self, part: Part, name: str) -> None:
        """`name` is that of the file or the folder: it counts where nothing else is said."""
        self._block = _block(part.config)
        level = part.metadata.get("quantization_level")
        found = _NAME.search(name)
        self._general: Label | None = None
        if self._block:
            self._general = _label(self._block)
        elif level is not None and level.isdecimal():
            # mflux writes no group size.
            self._general = Label(bits=int(level), group_size=None, source="quantization_level")
        elif found:
            self._general = Label(bits=int(found[1]), group_size=None, source="its name")

    def of_packed(self, path: str) -> Label | None:
        """Return what is said of a layer that is packed."""
        return self._named(path) or self._general

    def of_dense(self, path: str) -> Label | None:
        """Return what is said of a layer that is not packed: only one that is named should be."""
        return self._named(path)

    def _named(self, path: str) -> Label | None:
        said = self._block.get(path)
        if said is False:
            return Label(bits=None, group_size=None, source="config.json")
        return _label(said) if isinstance(said, dict) else None


def _block(config: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("quantization", "quantization_config"):
        block = config.get(key)
        if isinstance(block, dict) and _label(block):
            return block
    return {}


def _label(said: Mapping[str, Any]) -> Label | None:
    bits, group_size = said.get("bits"), said.get("group_size")
    if isinstance(bits, int) and isinstance(group_size, int):
        return Label(bits=bits, group_size=group_size, source="config.json")
    return None
