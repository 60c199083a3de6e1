"""A run: one set of settings, with an id that every task, shard and record of it carries."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from shared.choices import GROUP_SIZES
from shared.identity import settings_id
from shared.models import Precision, Reference

PROTOCOL = 2
"""Raised when an older worker would misread a job; workers of two protocols have queues of their own.

It is no part of a run's identity: a folder stays what it is under every revision.
"""

Compute = Literal["float32", "model"]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Identifier = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,80}\Z")]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]


class RunSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides the samples of a calibration, down to the last bit on one kind of machine."""

    model: Annotated[str, Meta(min_length=1, max_length=200)]
    checkpoint_sha256: Digest | None = None
    """Of the file given with --checkpoint; None for the model's own."""
    num_steps: Annotated[int, Meta(ge=1, le=1000)]
    cfg_weight: Annotated[float, Meta(ge=0, le=100)]
    image_size: Annotated[int, Meta(ge=16, le=4096, multiple_of=16)]
    """Pixels, of the square image."""
    seed: Seed
    """Of image 0; image i uses seed + i."""
    shift: Annotated[float, Meta(gt=0, le=100)]
    use_t5: bool
    precision: Precision
    """Of weights and activations."""
    prompts_sha256: Digest
    """Of all prompts that the run was first enqueued with, in order; more may follow later."""
    protocol: Literal[1] = 1
    """Never raised: it has been part of every id since the first release. See PROTOCOL."""
    reference: Reference = "diffusionkit"
    """Whose forward pass the transformer runs."""
    guidance: Annotated[float, Meta(ge=0, le=100)] | None = None
    """What the model's guidance embedding is given; None where it has none, or isn't asked."""

    added: ClassVar[frozenset[str]] = frozenset({"reference", "guidance"})
    """Fields that came later; see shared.identity."""

    @property
    def id(self) -> str:
        """Twelve hex digits; equal settings have equal ids."""
        return settings_id(self, self.added)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latent: the VAE shrinks by 8."""
        return self.image_size // 8, self.image_size // 8


class SensitivitySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides the meaning of a sensitivity result; layers and bits may be added later."""

    run_id: Identifier
    sample_set_sha256: Digest
    group_size: Annotated[int, Meta(ge=min(GROUP_SIZES), le=max(GROUP_SIZES))]
    until: Annotated[float, Meta(gt=0, le=100)] | None = None
    """Percent: an exact measurement stops once its relative error's 95% interval is that tight."""
    protocol: Literal[1] = 1
    """Never raised: it has been part of every id since the first release. See PROTOCOL."""
    compute: Compute = "model"
    """In what an exact measurement runs the model: float32, or the model's own precision. Sketches always
    run in float32."""

    added: ClassVar[frozenset[str]] = frozenset({"compute"})
    """Fields that came later; see shared.identity."""

    @property
    def id(self) -> str:
        """Twelve hex digits; equal settings have equal ids."""
        return settings_id(self, self.added)
