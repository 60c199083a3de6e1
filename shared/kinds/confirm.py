"""Confirm: the joint first-order error of a few plans, on images that had no part in choosing them."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from shared.errors import ShardCorruptError
from shared.identity import settings_id
from shared.kinds.kind import Kind, Task
from shared.layout.npz import Array
from shared.packed_arrays import FLOATS, INTEGERS, PackedArrays
from shared.runs import Digest, Identifier, Seed


class ConfirmSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a confirmation means."""

    run_id: Identifier
    variants_sha256: Digest
    """Of the variants' blob, see shared.plan."""
    probe_seed: Seed = 0

    @property
    def id(self) -> str:
        """Twelve hex digits. Equal settings have equal ids."""
        return settings_id(self, frozenset())


class ConfirmTask(Task, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="confirm"):
    """One image with one random probe of its final latent, for all variants."""

    confirm: ConfirmSettings
    image_index: Annotated[int, Meta(ge=0, le=10_000_000)]
    """Seeds the probe, with the settings' seed."""
    prompt: Annotated[str, Meta(max_length=10_000)]
    seed: Seed

    @property
    def id(self) -> str:
        """The name of the task's job, shard and record."""
        return f"con-{self.confirm.id}-{self.image_index:05d}"

    @property
    def namespace(self) -> str:
        """The name under which a store keeps the task's shard and record."""
        return self.confirm.id

    @property
    def blobs(self) -> tuple[str, ...]:
        """What its settings name."""
        return (self.confirm.variants_sha256,)

    @property
    def label(self) -> str:
        """A short description for messages."""
        return f"predicted errors on image {self.image_index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmShard(PackedArrays):
    """What one probe r of one image's final latent x_N says about V variants and L layers."""

    image_index: Array
    """() integer."""
    products: Array
    """(V, L) float64: <sum of G_n over all steps, W_quantized - W>; 0 for layers that a variant keeps.

    The square of a variant's sum over layers is, in expectation over r, its squared error of x_N to first
    order, all layers together."""
    squared_reference: Array
    """() float64: ||x_N||^2."""
    output_size: Array
    """() integer: number of elements of x_N."""

    _layout: ClassVar[dict[str, tuple[str, int]]] = {
        "image_index": (INTEGERS, 0),
        "products": (FLOATS, 2),
        "squared_reference": (FLOATS, 0),
        "output_size": (INTEGERS, 0),
    }

    def _check(self) -> None:
        if self.products.size == 0:
            raise ShardCorruptError("no products")
        self._check_finite()


KIND = Kind(
    name="confirm",
    task=ConfirmTask,
    shard=ConfirmShard,
    prefix="con",
    tasks="predicted errors",
)
