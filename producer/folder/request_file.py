"""request.json: a sensitivity run, and which layers and bits of it are wanted."""

from collections.abc import Sequence

from msgspec import Struct

from shared.kinds.kind import Bits, Layer
from shared.runs import SensitivitySettings


class SketchRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is wanted of a sketch."""

    bits: tuple[Bits, ...]
    probes: int
    """Random vectors a sample."""
    verify: int
    """How many pairs to measure exactly afterwards."""


class RequestFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was asked for with `enqueue-sensitivity`, in one call or in several."""

    settings: SensitivitySettings
    layers: tuple[Layer, ...]
    """In the order of the forward pass."""
    bits: tuple[Bits, ...]
    """To be measured exactly at each of these layers."""
    samples: int
    max_images: int
    step_stride: int
    sketch: SketchRequest | None = None
    verify: tuple[tuple[Layer, Bits], ...] = ()
    """Sketched pairs that are measured exactly, chosen once the sketch is complete."""

    def pairs(self) -> list[tuple[str, int]]:
        """Every (layer, bits) to be measured exactly, in the order of one sweep through the model."""
        swept = [(layer, bits) for layer in self.layers for bits in self.bits]
        known = set(swept)
        return swept + [pair for pair in self.verify if pair not in known]


def union_in_order(order: Sequence[str], *parts: Sequence[str]) -> tuple[str, ...]:
    """All of `parts`, once each, in the order given."""
    wanted = {name for part in parts for name in part}
    return tuple(name for name in order if name in wanted)
