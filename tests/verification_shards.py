"""Verification shards as a worker would leave them, without a model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.kinds.verification import VerificationShard

PNG = b"\x89PNG drawn"


def verification_shard(
    image: int, psnr_db: Sequence[float], *, steps: int = 4, floor_db: float | None = None, **changes: Any
) -> VerificationShard:
    """One prompt, whose latent has 100 elements and a peak of 1. `psnr_db` leaves the original out."""
    error = 100 * 10 ** (-np.array([np.inf, *psnr_db]) / 10)
    variants = len(error)
    pngs = [PNG + bytes([row]) for row in range(variants)] if changes.pop("shown", False) else []
    values: dict[str, Any] = {
        "image_index": np.array(image),
        "squared_error": error,
        "overflows": np.zeros(variants, bool),
        "peak": np.array(1.0),
        "squared_reference": np.array(25.0),
        "output_size": np.array(100),
        "velocity_error": np.outer(error, np.linspace(1, 2, steps)) / 100,
        "has_images": np.array(True),
        "image_psnr_db": np.array([100.0, *psnr_db]),
        "ssim": np.array([1.0, *(value / 100 for value in psnr_db)]),
        "lpips": np.zeros(0),
        "has_floor": np.array(floor_db is not None),
        "floor_squared_error": np.array(0.0 if floor_db is None else 100 * 10 ** (-floor_db / 10)),
        "image_png": np.frombuffer(b"".join(pngs), np.uint8),
        "image_png_size": np.array([len(png) for png in pngs] if pngs else [0] * variants),
    }
    return VerificationShard(**values | changes)
