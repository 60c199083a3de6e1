"""Calibration: a worker draws one image and keeps the inputs of every denoising step."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from shared.errors import ShardCorruptError
from shared.kinds.kind import Kind, Task
from shared.layout.conditioning import Conditioning, check_conditioning
from shared.layout.npz import Array
from shared.packed_arrays import CONDITIONING, FLOATS, PackedArrays
from shared.runs import Seed


class CalibrationTask(Task, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="calibration"):
    """One image, with all of its denoising steps."""

    image_index: Annotated[int, Meta(ge=0, le=10_000_000)]
    prompt: Annotated[str, Meta(max_length=10_000)]
    seed: Seed

    @property
    def id(self) -> str:
        """The name of the task's job, shard and record."""
        return f"cal-{self.run.id}-{self.image_index:05d}"

    @property
    def namespace(self) -> str:
        """The name under which a store keeps the task's shard and record."""
        return self.run.id

    @property
    def label(self) -> str:
        """A short description for messages."""
        return f"image {self.image_index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationShard(PackedArrays):
    """The N denoising steps of one image, in the run's precision.

    numpy has no bfloat16, so such values are kept as float32. They compress to 2.1 bytes each, because the
    lower half of their bits is zero.
    """

    x: Array
    """(N + 1, H, W, C): the latent before each step, and the final latent."""
    sigma: Array
    """(N + 1,) float32; the last is 0 for SD3."""
    timestep: Array
    """(N,): rounded to the activation dtype, stored as float32."""
    conditioning: Conditioning
    """Arrays of B rows: 2 with CFG (text, negative), else 1. SD3 and FLUX: `conditioning` (B, T, D) and
    `pooled_conditioning` (B, P)."""
    preview_png: Array
    """(bytes,) uint8: the decoded image as PNG; empty if decoding failed."""
    model_json: Array
    """(bytes,) uint8: the model card, see shared.model_card."""

    _layout: ClassVar[dict[str, tuple[str, int]]] = {
        "x": (FLOATS, 4),
        "sigma": (FLOATS, 1),
        "timestep": (FLOATS, 1),
        "conditioning": (CONDITIONING, 0),
        "preview_png": ("u", 1),
        "model_json": ("u", 1),
    }

    def _check(self) -> None:
        steps = len(self.timestep)
        if len(self.x) != steps + 1 or len(self.sigma) != steps + 1:
            raise ShardCorruptError(
                f"{len(self.x)} latents and {len(self.sigma)} sigmas do not fit {steps} steps"
            )
        check_conditioning(self.conditioning, leading=())
        self._check_finite()


KIND = Kind(
    name="calibration",
    task=CalibrationTask,
    shard=CalibrationShard,
    prefix="cal",
    tasks="images",
)
