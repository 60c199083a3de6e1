"""Sketch: backward passes with random probes estimate the effect of every layer at once, for one sample."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta, field

from shared.choices import BITS
from shared.errors import ShardCorruptError
from shared.kinds.kind import Bits, Kind, Task
from shared.layout.npz import Array
from shared.packed_arrays import BOOLEANS, FLOATS, INTEGERS, PackedArrays
from shared.runs import SensitivitySettings


class SketchTask(Task, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="sketch"):
    """One sample and one batch of probes: a first-order estimate for every layer and bit width."""

    sensitivity: SensitivitySettings
    bits: Annotated[tuple[Bits, ...], Meta(min_length=1, max_length=len(BITS))]
    sample: Annotated[int, Meta(ge=0, le=10_000_000)]
    """Index in the sample set."""
    probe_batch: Annotated[int, Meta(ge=0, le=10_000)] = field(name="probe_group")
    """Number of the batch. Sample and batch seed the random probes: further batches add new probes.

    In JSON and in ids it keeps its first name, probe group."""
    probes: Annotated[int, Meta(ge=1, le=64)]
    """Number of probes in the batch."""

    @property
    def id(self) -> str:
        """The name of the task's job, shard and record, with bit widths and number of probes."""
        widths = "".join(str(bits) for bits in self.bits)
        return (
            f"ske-{self.sensitivity.id}-b{widths}-p{self.probes}-s{self.sample:05d}-g{self.probe_batch:03d}"
        )

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
        return f"sketch of sample {self.sample}, probes {self.probe_batch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SketchShard(PackedArrays):
    """The effect of L layers at B bit widths on the output of one sample, as seen by P probes.

    The layers are in the order of the model card.
    """

    image_index: Array
    """() integer."""
    step_index: Array
    """() integer."""
    bits: Array
    """(B,) integers."""
    products: Array
    """(L, B, P) float64: <G, W_quantized - W> with G = d<r, v>/dW for probe r; 0 where not measurable."""
    squared_reference: Array
    """() float64: ||v||^2 of the guided velocity."""
    output_size: Array
    """() integer: number of elements of v."""
    dead: Array
    """(L,) bool: no gradient reaches this layer from any probe."""
    measurable: Array
    """(L,) bool: False where the number of inputs is not a multiple of the group size."""
    weight_squared_error: Array
    """(L, B) float64: ||W_quantized - W||^2."""
    weight_squared_norm: Array
    """(L,) float64: ||W||^2."""
    bits_per_weight: Array
    """(L, B) float64: bits stored per weight, with scales and biases."""

    _layout: ClassVar[dict[str, tuple[str, int]]] = {
        "image_index": (INTEGERS, 0),
        "step_index": (INTEGERS, 0),
        "bits": (INTEGERS, 1),
        "products": (FLOATS, 3),
        "squared_reference": (FLOATS, 0),
        "output_size": (INTEGERS, 0),
        "dead": (BOOLEANS, 1),
        "measurable": (BOOLEANS, 1),
        "weight_squared_error": (FLOATS, 2),
        "weight_squared_norm": (FLOATS, 1),
        "bits_per_weight": (FLOATS, 2),
    }

    def _check(self) -> None:
        layers, widths, probes = self.products.shape
        if probes == 0 or widths != len(self.bits) or self.weight_squared_error.shape != (layers, widths):
            raise ShardCorruptError(
                f"products of shape {self.products.shape} for {len(self.bits)} bit widths"
            )
        if self.bits_per_weight.shape != (layers, widths) or any(
            len(array) != layers for array in (self.dead, self.measurable, self.weight_squared_norm)
        ):
            raise ShardCorruptError("arrays of a sketch differ in their number of layers")
        self._check_finite()


KIND = Kind(
    name="sketch",
    task=SketchTask,
    shard=SketchShard,
    prefix="ske",
    tasks="sketches",
)
