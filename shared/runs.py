"""A run: one set of settings. Its id is part of the name of every task, shard and record."""

from functools import cached_property
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from shared.choices import GROUP_SIZES
from shared.identity import settings_id
from shared.models import Precision, Reference

PROTOCOL = 2
"""Increased when older workers would misread a job. Each protocol has its own queue.

It is not part of a run's id, so folders of older revisions stay valid.
"""

Compute = Literal["float32", "model"]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Identifier = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,80}\Z")]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class RunSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Everything that decides the samples of a calibration, to the last bit on one kind of machine."""

    model: Annotated[str, Meta(min_length=1, max_length=200)]
    checkpoint_sha256: Digest | None = None
    """sha256 of the file given with --checkpoint; None for the model's own weights."""
    num_steps: Annotated[int, Meta(ge=1, le=1000)]
    cfg_weight: Annotated[float, Meta(ge=0, le=100)]
    image_size: Annotated[int, Meta(ge=16, le=4096, multiple_of=16)]
    """Width and height of the image in pixels."""
    seed: Seed
    """Random seed of image 0; image i uses seed + i."""
    shift: Annotated[float, Meta(gt=0, le=100)]
    use_t5: bool
    precision: Precision
    """Number format of weights and activations."""
    prompts_sha256: Digest
    """sha256 of all prompts that the run was first enqueued with, in order. More may be added later."""
    protocol: Literal[1] = 1
    """Always 1, because it has been part of every id since the first release. See PROTOCOL."""
    reference: Reference = "diffusionkit"
    """Which forward pass the transformer runs."""
    guidance: Annotated[float, Meta(ge=0, le=100)] | None = None
    """Input of the model's guidance embedding; None if there is none, or if it is not used."""

    added: ClassVar[frozenset[str]] = frozenset({"reference", "guidance"})
    """Fields that were added after the first release; see shared.identity."""

    @cached_property
    def id(self) -> str:
        """Twelve hex digits. Equal settings have equal ids. Each of thousands of tasks asks for it."""
        return settings_id(self, self.added)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latent: an eighth of the image's."""
        return self.image_size // 8, self.image_size // 8


class SensitivitySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Everything that decides what a sensitivity result means. Layers and bits can be added later."""

    run_id: Identifier
    sample_set_sha256: Digest
    group_size: Annotated[int, Meta(ge=min(GROUP_SIZES), le=max(GROUP_SIZES))]
    until: Annotated[float, Meta(gt=0, le=100)] | None = None
    """In percent: an exact measurement stops once the 95% interval of its relative error is this narrow."""
    protocol: Literal[1] = 1
    """Always 1, because it has been part of every id since the first release. See PROTOCOL."""
    compute: Compute = "model"
    """Number format in which exact measurements run the model: float32, or the model's own. Sketches always
    run in float32."""

    added: ClassVar[frozenset[str]] = frozenset({"compute"})
    """Fields that were added after the first release; see shared.identity."""

    @cached_property
    def id(self) -> str:
        """Twelve hex digits. Equal settings have equal ids."""
        return settings_id(self, self.added)
