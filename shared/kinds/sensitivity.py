"""Sensitivity: the model runs with one layer quantized; its velocity is compared with the original one."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

from shared.errors import ShardCorruptError
from shared.kinds.kind import Bits, Kind, Layer, Task
from shared.layout.npz import Array
from shared.packed_arrays import BOOLEANS, FLOATS, INTEGERS, PackedArrays
from shared.runs import SensitivitySettings


class SensitivityTask(Task, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="sensitivity"):
    """One (layer, bits): how much the model's output changes when this weight is quantized."""

    sensitivity: SensitivitySettings
    layer: Layer
    bits: Bits

    @property
    def id(self) -> str:
        """The name of the task's job, shard and record. The layer is hashed: a job id has no dots."""
        layer = hashlib.sha256(self.layer.encode()).hexdigest()[:12]
        return f"sen-{self.sensitivity.id}-{layer}-b{self.bits}"

    @property
    def namespace(self) -> str:
        """The name under which a store keeps the task's shard and record."""
        return self.sensitivity.id

    @property
    def blobs(self) -> tuple[str, ...]:
        """What its settings name."""
        return (self.sensitivity.sample_set_sha256,)

    @property
    def label(self) -> str:
        """A short description for messages."""
        return f"{self.layer} at {self.bits} bits"


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityShard(PackedArrays):
    """The results of one (layer, bits) for each of n samples, so that they can be averaged later."""

    image_index: Array
    """(n,) integers."""
    step_index: Array
    """(n,) integers."""
    squared_error: Array
    """(n,) float64: ||v_quantized - v||^2 of the guided velocity."""
    squared_reference: Array
    """(n,) float64: ||v||^2."""
    noise_squared_error: Array
    """(n,) float64: the same error when only the last bits of a nearby layer's weight are changed. 0 in older
    shards, for which this was not measured."""
    cosine: Array
    """(n,) float64: cosine similarity of v_quantized and v."""
    max_abs: Array
    """(n,) float64: largest |v_quantized - v|."""
    output_size: Array
    """() integer: number of elements of v."""
    dead: Array
    """() bool: this layer can't influence the output."""
    weight_squared_error: Array
    """() float64: ||W_quantized - W||^2."""
    weight_squared_norm: Array
    """() float64: ||W||^2."""
    bits_per_weight: Array
    """() float64: bits stored per weight, with scales and biases."""

    _layout: ClassVar[dict[str, tuple[str, int]]] = {
        "image_index": (INTEGERS, 1),
        "step_index": (INTEGERS, 1),
        "squared_error": (FLOATS, 1),
        "squared_reference": (FLOATS, 1),
        "noise_squared_error": (FLOATS, 1),
        "cosine": (FLOATS, 1),
        "max_abs": (FLOATS, 1),
        "output_size": (INTEGERS, 0),
        "dead": (BOOLEANS, 0),
        "weight_squared_error": (FLOATS, 0),
        "weight_squared_norm": (FLOATS, 0),
        "bits_per_weight": (FLOATS, 0),
    }

    def _check(self) -> None:
        lengths = {len(getattr(self, name)) for name, (_, ndim) in self._layout.items() if ndim == 1}
        if len(lengths) != 1 or lengths == {0}:
            raise ShardCorruptError(f"per-sample arrays of lengths {sorted(lengths)}")
        self._check_finite()


KIND = Kind(
    name="sensitivity",
    task=SensitivityTask,
    shard=SensitivityShard,
    prefix="sen",
    tasks="exact measurements",
)
