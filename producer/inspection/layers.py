"""Bits and group sizes of layers, read off the shapes that are stored.

A packed weight has `inputs * bits / 32` columns of uint32, and its scales have `inputs / group_size` columns.
So the shapes tell `bits * group_size`, and with the number of inputs both. That number is stored nowhere: it
is taken from the label where that fits the shapes, else from the widths of the other layers.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec import Struct

from producer.inspection.labels import Label, Labels
from producer.inspection.tensors import Part, Tensor
from shared.choices import BITS, DEFAULT_GROUP_SIZE, GROUP_SIZES

DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
OTHER_MODES = {128: ("mxfp4", 4, 32), 64: ("nvfp4", 4, 16), 256: ("mxfp8", 8, 32)}
"""MLX's modes with scales of one byte and no biases, by bits * group size."""

Reading = tuple[int, int]
"""Bits and group size."""


class Layer(Struct, frozen=True, kw_only=True):
    """A weight of two or more dimensions, packed or not."""

    part: str
    """Folder that it is in, below the one that was asked for."""
    path: str
    """Dotted, without ".weight"."""
    shape: tuple[int, ...]
    """Of the weight that it stands for: (outputs, inputs)."""
    mode: str
    """"affine" or another mode of MLX; of a weight that is not quantized its dtype."""
    bits: int
    group_size: int | None
    """None for a weight that is not quantized."""
    certain: bool
    """Whether shapes, label and the widths of the other layers allow one reading only."""
    nbytes: int
    """Of the weight, with scales and biases."""
    label: str | None = None
    """What the checkpoint says of it: "4/64"; None if it says nothing."""
    problem: str | None = None
    """How label and content differ, or what is missing."""

    @property
    def stored_as(self) -> str:
        """A short name: "4/64", "mxfp4", "float16"."""
        if self.group_size is None or self.mode != "affine":
            return self.mode
        return f"{self.bits}/{self.group_size}"

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """What is stored for a weight: bits, scales and biases."""
        return 8 * self.nbytes / max(1, self.weights)


def layers_of(part: Part, name: str) -> list[Layer]:
    """Return the layers of a part, in the order of their names.

    Args:
        part: its tensors and what it says of itself.
        name: of the file or the folder, which may say how many bits there are.
    """
    labels = Labels(part, name)
    paths = [key.removesuffix(".weight") for key in part.tensors if key.endswith(".weight")]
    packed = {path: _packed(part, path, labels) for path in paths if f"{path}.scales" in part.tensors}
    widths = _widths(part, packed)
    refuted = _refuted(packed.values(), widths)
    layers = []
    for path in sorted(paths):
        if path in packed:
            layers.append(_read(part, packed[path], widths, refuted))
        elif len(part.tensors[f"{path}.weight"].shape) > 1:
            layers.append(_dense(part, path, labels))
    return layers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    """A packed weight."""

    path: str
    weight: Tensor
    scales: Tensor
    biases: Tensor | None
    label: Label | None

    @property
    def readings(self) -> list[Reading]:
        """All bits and group sizes that fit the shapes."""
        groups = self.scales.shape[-1]
        product, rest = divmod(32 * self.weight.shape[-1], max(1, groups))
        if rest or self.weight.dtype != "U32" or self.weight.shape[:-1] != self.scales.shape[:-1]:
            return []
        if self.is_affine:
            return [(bits, size) for size in GROUP_SIZES for bits in BITS if bits * size == product]
        return [OTHER_MODES[product][1:]] if product in OTHER_MODES else []

    @property
    def is_affine(self) -> bool:
        return self.scales.dtype != "U8"

    @property
    def labelled(self) -> list[Reading]:
        """The readings that are what the label says."""
        return [reading for reading in self.readings if self.label and self.label.fits(*reading)]

    def inputs(self, reading: Reading) -> int:
        return 32 * self.weight.shape[-1] // reading[0]

    def shape(self, reading: Reading) -> tuple[int, ...]:
        return (*self.weight.shape[:-1], self.inputs(reading))


def _packed(part: Part, path: str, labels: Labels) -> _Packed:
    return _Packed(
        path=path,
        weight=part.tensors[f"{path}.weight"],
        scales=part.tensors[f"{path}.scales"],
        biases=part.tensors.get(f"{path}.biases"),
        label=labels.of_packed(path),
    )


def _widths(part: Part, packed: Iterable[str]) -> set[int]:
    """Numbers of channels that other layers have: their outputs, and the inputs of those not packed."""
    widths = set()
    for key, tensor in part.tensors.items():
        if key.endswith(".weight") and len(tensor.shape) == 2:
            widths.add(tensor.shape[0])
            if key.removesuffix(".weight") not in packed:
                widths.add(tensor.shape[1])
    return widths


def _refuted(packed: Iterable[_Packed], widths: set[int]) -> set[str]:
    """Labels that fit the shapes, but at other numbers of inputs than the model has.

    Of one layer alone that can't be told: its inputs may be as many as no other layer has channels. So most
    layers of one label must be better explained by another reading.
    """
    votes = defaultdict(list)
    for layer in packed:
        if layer.label and (labelled := layer.labelled):
            others = [reading for reading in layer.readings if reading not in labelled]
            known = any(layer.inputs(reading) in widths for reading in labelled)
            votes[layer.label.text].append(not known and any(layer.inputs(r) in widths for r in others))
    return {text for text, against in votes.items() if len(against) > 1 and 2 * sum(against) > len(against)}


def _read(part: Part, packed: _Packed, widths: set[int], refuted: set[str]) -> Layer:
    readings, label = packed.readings, packed.label
    parts = [tensor for tensor in (packed.weight, packed.scales, packed.biases) if tensor]
    problem = None
    if not readings:
        problem = f"shapes of weight {packed.weight.shape} and scales {packed.scales.shape} do not fit"
    elif packed.is_affine and (packed.biases is None or packed.biases.shape != packed.scales.shape):
        problem = "its biases are missing or do not fit its scales"
    trusted = packed.labelled if label and label.text not in refuted else []
    # By trust: the label, then the widths of other layers.
    pool = trusted or readings or [(packed.weight.bits, 0)]
    pool = [reading for reading in pool if packed.inputs(reading) in widths] or pool
    bits, size = next((reading for reading in pool if reading[1] == DEFAULT_GROUP_SIZE), pool[0])
    if readings and label and not trusted:
        problem = f"{label.source} says {label.text}, the shapes say {_either(pool)}"
    mode = "affine" if packed.is_affine else OTHER_MODES.get(bits * size, ("unknown",))[0]
    return Layer(
        part=part.name,
        path=packed.path,
        shape=packed.shape((bits, size)),
        mode=mode,
        bits=bits,
        group_size=size,
        certain=len(pool) == 1 and bool(readings),
        nbytes=sum(tensor.nbytes for tensor in parts),
        label=label.text if label else None,
        problem=problem,
    )


def _dense(part: Part, path: str, labels: Labels) -> Layer:
    tensor, label = part.tensors[f"{path}.weight"], labels.of_dense(path)
    problem = None
    if tensor.dtype == "U32":
        problem = "it is packed, but its scales are missing"
    elif label and label.bits is not None:
        problem = f"{label.source} says {label.text}, but it is not quantized"
    return Layer(
        part=part.name,
        path=path,
        shape=tensor.shape,
        mode=DTYPES.get(tensor.dtype, tensor.dtype),
        bits=tensor.bits,
        group_size=None,
        certain=True,
        nbytes=tensor.nbytes,
        label=label.text if label else None,
        problem=problem,
    )


def _either(readings: Sequence[Reading]) -> str:
    return " or ".join(f"{bits}/{size}" for bits, size in readings)
