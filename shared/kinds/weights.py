"""Weights: how far every candidate is from a layer's weight, and what it costs to store; without data."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from shared.errors import ShardCorruptError
from shared.identity import digest_of
from shared.kinds.kind import Kind, Task
from shared.layout.npz import Array
from shared.packed_arrays import BOOLEANS, FLOATS, INTEGERS, PackedArrays
from shared.plan import Choice


class WeightsTask(Task, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="weights"):
    """All layers of a model, each quantized in every way that is asked for."""

    candidates: Annotated[tuple[Choice, ...], Meta(min_length=1, max_length=64)]

    @property
    def id(self) -> str:
        """The name of the task's job, shard and record."""
        return f"wei-{self.run.id}-{digest_of(self.candidates)[:12]}"

    @property
    def namespace(self) -> str:
        """The name under which a store keeps the task's shard and record."""
        return self.run.id

    @property
    def label(self) -> str:
        """A short description for messages."""
        return f"weight errors of {len(self.candidates)} candidates"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsShard(PackedArrays):
    """L layers, in the order of the model card, by C candidates, in the order of the task."""

    bits: Array
    """(C,) integers."""
    group_size: Array
    """(C,) integers."""
    measurable: Array
    """(L, C) bool: False where a layer's inputs are no multiple of the group size."""
    squared_error: Array
    """(L, C) float64: ||W_quantized - W||^2; 0 where not measurable."""
    squared_norm: Array
    """(L,) float64: ||W||^2."""
    stored_bytes: Array
    """(L, C) integers: packed weights, with scales and biases of 16 bits; 0 where not measurable."""

    _layout: ClassVar[dict[str, tuple[str, int]]] = {
        "bits": (INTEGERS, 1),
        "group_size": (INTEGERS, 1),
        "measurable": (BOOLEANS, 2),
        "squared_error": (FLOATS, 2),
        "squared_norm": (FLOATS, 1),
        "stored_bytes": (INTEGERS, 2),
    }

    def _check(self) -> None:
        shape = (len(self.squared_norm), len(self.bits))
        tables = (self.measurable, self.squared_error, self.stored_bytes)
        if len(self.group_size) != len(self.bits) or any(table.shape != shape for table in tables):
            raise ShardCorruptError("tables of weight errors differ in layers or candidates")
        self._check_finite()


KIND = Kind(
    name="weights",
    task=WeightsTask,
    shard=WeightsShard,
    prefix="wei",
    tasks="weight errors",
)
