"""What the shards of a verification say, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.kinds.verification import VerificationShard
from shared.metrics import BUCKETS, Bucket, Floats, Integers, in_bucket, psnr_db


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """V variants on n prompts, in the order in which the prompts were to be drawn."""

    psnr_db: Floats
    """(V, n): of final latents, against the original's."""
    relative_squared_error: Floats
    """(V, n): of final latents."""
    velocity_error: dict[Bucket, Floats]
    """(V,): relative error of the guided velocity in each third of the steps, over all prompts."""
    overflows: Integers
    """(V,): on how many prompts a variant overflows."""
    image_psnr_db: Floats
    """(V, m): of the pictures of those prompts whose pictures were decoded."""
    ssim: Floats
    """(V, m)."""
    lpips: Floats
    """(V, k): on those prompts where it was measured."""
    floor_db: Floats
    """(f,): PSNR of the original against itself, on the prompts on which it was drawn twice."""

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return int(self.psnr_db.shape[1])

    def best_of(self, rows: Sequence[int]) -> int:
        """Return the row with the largest mean PSNR; the first of equal ones."""
        means: list[float] = self.psnr_db.mean(axis=1).tolist()
        return max(rows, key=lambda row: (means[row], -row))

    @property
    def floor(self) -> float | None:
        """The noise floor in dB: the median over prompts. None if it was not measured."""
        return float(np.median(self.floor_db)) if len(self.floor_db) else None


def measured(shards: Sequence[VerificationShard]) -> Measured:
    """Return what shards of the same variants say; one at least."""
    steps = shards[0].velocity_error.shape[1]
    velocity = np.mean([shard.velocity_error for shard in shards], axis=0)
    thirds = {bucket: in_bucket(np.arange(steps), steps, bucket) for bucket in BUCKETS}
    decoded = [shard for shard in shards if shard.has_images]
    variants = len(shards[0].squared_error)
    return Measured(
        psnr_db=_columns(
            [psnr_db(shard.squared_error, shard.output_size, shard.peak) for shard in shards], variants
        ),
        relative_squared_error=_columns(
            [shard.squared_error / shard.squared_reference for shard in shards], variants
        ),
        velocity_error={
            bucket: np.sqrt(velocity[:, within].mean(axis=1))
            for bucket, within in thirds.items()
            if within.any()
        },
        overflows=np.sum([shard.overflows for shard in shards], axis=0),
        image_psnr_db=_columns([shard.image_psnr_db for shard in decoded], variants),
        ssim=_columns([shard.ssim for shard in decoded], variants),
        lpips=_columns([shard.lpips for shard in decoded if len(shard.lpips)], variants),
        floor_db=np.array(
            [
                psnr_db(shard.floor_squared_error, shard.output_size, shard.peak)
                for shard in shards
                if shard.has_floor
            ],
            dtype=np.float64,
        ),
    )


def _columns(values: Sequence[Floats], variants: int) -> Floats:
    """Return (V, number of prompts)."""
    return np.stack(values, axis=1) if values else np.zeros((variants, 0))
