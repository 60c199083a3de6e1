"""Levels: one backward trajectory tells how much a change of each layer moves an image's final latent."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from shared.errors import ShardCorruptError
from shared.identity import settings_id
from shared.kinds.kind import Kind, Task
from shared.layout.npz import Array
from shared.packed_arrays import BOOLEANS, FLOATS, INTEGERS, PackedArrays
from shared.plan import Choice
from shared.runs import Identifier, Seed

PARTS = 4
"""Early, middle and late third of the steps, then all steps together."""


class LevelsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a level means."""

    run_id: Identifier
    buckets: Annotated[int, Meta(ge=16, le=65536)] = 1024
    """Of the count sketch that keeps a layer's gradient."""
    candidates: Annotated[tuple[Choice, ...], Meta(max_length=16)] = ()
    """Plain candidates whose products with the gradient are measured, too."""
    probe_seed: Seed = 0

    @property
    def id(self) -> str:
        """Twelve hex digits. Equal settings have equal ids."""
        return settings_id(self, frozenset())


class LevelsTask(Task, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="levels"):
    """One image with one random probe of its final latent."""

    levels: LevelsSettings
    image_index: Annotated[int, Meta(ge=0, le=10_000_000)]
    """Seeds the probe, with the settings' seed."""
    prompt: Annotated[str, Meta(max_length=10_000)]
    seed: Seed

    @property
    def id(self) -> str:
        """The name of the task's job, shard and record."""
        return f"lev-{self.levels.id}-{self.image_index:05d}"

    @property
    def namespace(self) -> str:
        """The name under which a store keeps the task's shard and record."""
        return self.levels.id

    @property
    def label(self) -> str:
        """A short description for messages."""
        return f"levels of image {self.image_index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelsShard(PackedArrays):
    """What one probe r of one image's final latent x_N says about L layers, in the order of the model card.

    G_n is the gradient of <r, x_N> by a layer's weight as it is used at step n. The parts are the thirds of
    the steps and all steps, see `PARTS`.
    """

    image_index: Array
    """() integer."""
    levels: Array
    """(L, PARTS) float64: ||sum of G_n over the part's steps||^2 / (number of weights), by count sketch."""
    products: Array
    """(L, C, PARTS) float64: <sum of G_n, W_quantized - W> of the settings' candidates; else 0."""
    measurable: Array
    """(L, C) bool: False where a layer's inputs are no multiple of the group size."""
    dead: Array
    """(L,) bool: no gradient reaches this layer."""
    cotangent_norm: Array
    """(N + 1,) float64: ||d<r, x_N>/dx_n|| before each step, and of r."""
    squared_reference: Array
    """() float64: ||x_N||^2."""
    output_size: Array
    """() integer: number of elements of x_N."""

    _layout: ClassVar[dict[str, tuple[str, int]]] = {
        "image_index": (INTEGERS, 0),
        "levels": (FLOATS, 2),
        "products": (FLOATS, 3),
        "measurable": (BOOLEANS, 2),
        "dead": (BOOLEANS, 1),
        "cotangent_norm": (FLOATS, 1),
        "squared_reference": (FLOATS, 0),
        "output_size": (INTEGERS, 0),
    }

    def _check(self) -> None:
        layers, candidates, parts = self.products.shape
        if self.levels.shape != (layers, PARTS) or parts != PARTS or len(self.dead) != layers:
            raise ShardCorruptError(f"levels of shape {self.levels.shape} and products {self.products.shape}")
        if self.measurable.shape != (layers, candidates):
            raise ShardCorruptError("arrays of levels differ in their number of candidates")
        self._check_finite()


KIND = Kind(
    name="levels",
    task=LevelsTask,
    shard=LevelsShard,
    prefix="lev",
    tasks="levels",
)
