"""request.json: a sensitivity run, with the layers and bits that are wanted."""

from collections.abc import Sequence

from msgspec import Struct

from shared.kinds.kind import Bits, Layer
from shared.runs import SensitivitySettings


class SketchRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a sketch."""

    bits: tuple[Bits, ...]
    probes: int
    """Random probes per sample."""
    verify: int
    """How many (layer, bits) to measure exactly afterwards."""


class RequestFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that one or more calls of `enqueue-sensitivity` asked for."""

    settings: SensitivitySettings
    layers: tuple[Layer, ...]
    """Layers to measure exactly, in the order of the forward pass."""
    bits: tuple[Bits, ...]
    """Bit widths to measure exactly for each of these layers."""
    samples: int
    max_images: int
    step_stride: int
    sketch: SketchRequest | None = None
    verify: tuple[tuple[Layer, Bits], ...] = ()
    """(layer, bits) of the sketch to measure exactly; chosen when the sketch is complete."""

    def pairs(self) -> list[tuple[str, int]]:
        """Return every (layer, bits) to measure exactly, in the order of the forward pass."""
        swept = [(layer, bits) for layer in self.layers for bits in self.bits]
        known = set(swept)
        return swept + [pair for pair in self.verify if pair not in known]


def union_in_order(order: Sequence[str], *parts: Sequence[str]) -> tuple[str, ...]:
    """Return all names in `parts`, once each, in the given order."""
    wanted = {name for part in parts for name in part}
    return tuple(name for name in order if name in wanted)
