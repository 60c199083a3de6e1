"""Verification: one machine draws an image with the original and with quantized models, and compares."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from shared.errors import ShardCorruptError
from shared.identity import settings_id
from shared.kinds.kind import Kind, Task
from shared.layout.npz import Array
from shared.packed_arrays import BOOLEANS, FLOATS, INTEGERS, PackedArrays
from shared.runs import Digest, Identifier, Seed


class VerificationSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a verification means. Prompts can be added later."""

    run_id: Identifier
    variants_sha256: Digest
    """Of the variants' blob, see shared.plan. The first variant is the original."""
    num_steps: Annotated[int, Meta(ge=1, le=1000)]
    cfg_weight: Annotated[float, Meta(ge=0, le=100)]
    image_size: Annotated[int, Meta(ge=16, le=4096, multiple_of=16)]

    @property
    def id(self) -> str:
        """Twelve hex digits. Equal settings have equal ids."""
        return settings_id(self, frozenset())

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latent: an eighth of the image's."""
        return self.image_size // 8, self.image_size // 8


class VerificationTask(Task, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="verification"):
    """One prompt, drawn by all variants."""

    verification: VerificationSettings
    image_index: Annotated[int, Meta(ge=0, le=10_000_000)]
    prompt: Annotated[str, Meta(max_length=10_000)]
    seed: Seed
    floor: bool
    """Whether the original is drawn once more with the CFG rows swapped: what rounding alone does."""
    shown: Annotated[int, Meta(ge=0, le=64)] = 0
    """So many of the first variants keep their pictures."""

    @property
    def id(self) -> str:
        """The name of the task's job, shard and record."""
        return f"ver-{self.verification.id}-{self.image_index:05d}"

    @property
    def namespace(self) -> str:
        """The name under which a store keeps the task's shard and record."""
        return self.verification.id

    @property
    def blobs(self) -> tuple[str, ...]:
        """What its settings name."""
        return (self.verification.variants_sha256,)

    @property
    def label(self) -> str:
        """A short description for messages."""
        return f"verification on image {self.image_index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationShard(PackedArrays):
    """How far V variants are from the original on one prompt. The original itself is the first: all zeros."""

    image_index: Array
    """() integer."""
    squared_error: Array
    """(V,) float64: ||x_N of the variant - x_N of the original||^2 of final latents. A variant that overflows
    has output_size * peak^2, which is a PSNR of 0 dB."""
    overflows: Array
    """(V,) bool: the variant's output is not finite."""
    peak: Array
    """() float64: largest minus smallest value of the original's final latent; PSNR is relative to it."""
    squared_reference: Array
    """() float64: ||x_N||^2 of the original."""
    output_size: Array
    """() integer: number of elements of a latent."""
    velocity_error: Array
    """(V, N) float64: relative squared error of the guided velocity, each on its own trajectory; 1 in steps
    that an overflowing variant does not reach."""
    has_images: Array
    """() bool: whether latents were decoded. If not, image_psnr_db and ssim are 0."""
    image_psnr_db: Array
    """(V,) float64: of decoded images with 8 bits a value; 100 where they are equal."""
    ssim: Array
    """(V,) float64: structural similarity of decoded images."""
    lpips: Array
    """(V,) float64: learned perceptual distance of decoded images; of length 0 where it was not measured."""
    has_floor: Array
    """() bool."""
    floor_squared_error: Array
    """() float64: squared error of the original against itself with swapped CFG rows; 0 without a floor."""
    image_png: Array
    """(bytes,) uint8: decoded images as PNG files, one after the other; those of variants that are shown."""
    image_png_size: Array
    """(V,) integers: bytes of each variant's PNG; 0 for one that is not shown."""

    _layout: ClassVar[dict[str, tuple[str, int]]] = {
        "image_index": (INTEGERS, 0),
        "squared_error": (FLOATS, 1),
        "overflows": (BOOLEANS, 1),
        "peak": (FLOATS, 0),
        "squared_reference": (FLOATS, 0),
        "output_size": (INTEGERS, 0),
        "velocity_error": (FLOATS, 2),
        "has_images": (BOOLEANS, 0),
        "image_psnr_db": (FLOATS, 1),
        "ssim": (FLOATS, 1),
        "lpips": (FLOATS, 1),
        "has_floor": (BOOLEANS, 0),
        "floor_squared_error": (FLOATS, 0),
        "image_png": ("u", 1),
        "image_png_size": (INTEGERS, 1),
    }

    def _check(self) -> None:
        variants = len(self.squared_error)
        per_variant = (
            self.velocity_error,
            self.overflows,
            self.image_psnr_db,
            self.ssim,
            self.image_png_size,
        )
        if variants == 0 or any(len(array) != variants for array in per_variant):
            raise ShardCorruptError("arrays of a verification differ in their number of variants")
        if len(self.lpips) not in (0, variants):
            raise ShardCorruptError(f"{len(self.lpips)} perceptual distances of {variants} variants")
        if (self.image_png_size < 0).any() or self.image_png_size.sum() != len(self.image_png):
            raise ShardCorruptError("pictures of a verification do not fit their sizes")
        if (self.squared_error < 0).any() or min(self.peak, self.squared_reference, self.output_size) <= 0:
            raise ShardCorruptError("a verification with an error below 0, or without a latent")
        self._check_finite()

    def pictures(self) -> list[bytes]:
        """Return each variant's PNG; empty for one that is not shown."""
        ends = self.image_png_size.cumsum()
        data = self.image_png.tobytes()
        return [data[end - size : end] for end, size in zip(ends, self.image_png_size, strict=True)]


KIND = Kind(
    name="verification",
    task=VerificationTask,
    shard=VerificationShard,
    prefix="ver",
    tasks="verifications",
)
