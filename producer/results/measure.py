"""Compute the metrics of many (layer, bits) in all buckets at once."""

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import numpy as np

from producer.results.results import BUCKET_NAMES, BucketName, Metrics
from shared import metrics
from shared.kinds.sensitivity import SensitivityShard
from shared.metrics import Booleans


def measure(
    shards: Sequence[SensitivityShard], num_steps: int, *, level: float
) -> list[dict[BucketName, Metrics]]:
    """Return the metrics of each shard by bucket. `level` is the coverage of the intervals over images."""
    alike: dict[bytes, list[int]] = defaultdict(list)
    for index, shard in enumerate(shards):
        samples = np.stack([shard.image_index, shard.step_index]).astype("<i8")
        alike[samples.tobytes()].append(index)
    measured: list[dict[BucketName, Metrics]] = [{} for _ in shards]
    for indices in alike.values():
        stack = _Stack([shards[index] for index in indices])
        for bucket in BUCKET_NAMES:
            mask = stack.mask(bucket, num_steps)
            if not mask.any():
                continue
            for index, values in zip(indices, stack.metrics(mask, level), strict=True):
                measured[index][bucket] = values
    return measured


class _Stack:
    """Shards that were measured on the same n samples, stacked to arrays of (pairs, n)."""

    def __init__(self, shards: Sequence[SensitivityShard]) -> None:
        self.image_index = shards[0].image_index
        self.step_index = shards[0].step_index
        self.squared_error = np.stack([shard.squared_error for shard in shards])
        self.squared_reference = np.stack([shard.squared_reference for shard in shards])
        self.noise = np.stack([shard.noise_squared_error for shard in shards])
        self.cosine = np.stack([shard.cosine for shard in shards])
        self.max_abs = np.stack([shard.max_abs for shard in shards])
        self.output_size = np.array([int(shard.output_size) for shard in shards])

    def mask(self, bucket: BucketName, num_steps: int) -> Booleans:
        """Return (n,) booleans: which samples are in a bucket."""
        if bucket == "all":
            return np.ones(len(self.step_index), dtype=bool)
        return metrics.in_bucket(self.step_index, num_steps, bucket)

    def metrics(self, mask: Booleans, level: float) -> list[Metrics]:
        """Return the metrics of each pair over the samples in `mask`."""
        errors, references = self.squared_error[:, mask], self.squared_reference[:, mask]
        error, reference = errors.sum(axis=1), references.sum(axis=1)
        low, high = metrics.relative_error_interval(errors, references, self.image_index[mask], level=level)
        floor = self.noise[:, mask].sum(axis=1)
        columns = {
            "mse": metrics.mean_squared_error(errors, self.output_size),
            "relative_error": metrics.relative_error(error, reference),
            "relative_error_low": low,
            "relative_error_high": high,
            "sqnr_db": metrics.sqnr_db(error, reference),
            # A sketch does not know these two: NaN.
            "cosine": self.cosine[:, mask].mean(axis=1),
            "max_abs": self.max_abs[:, mask].max(axis=1),
            # 0 means that no floor was measured.
            "noise_relative_error": metrics.relative_error(np.where(floor > 0, floor, np.nan), reference),
        }
        samples, within_noise = int(mask.sum()), metrics.is_within_noise(error, floor)
        values = [
            {"samples": samples, "within_noise": bool(within_noise[pair])}
            | {name: finite(column[pair]) for name, column in columns.items()}
            for pair in range(len(errors))
        ]
        return msgspec.convert(values, list[Metrics])


def finite(value: float | np.float64) -> float | None:
    """Return None for infinity and NaN, which JSON lacks, and other values unchanged."""
    return float(value) if np.isfinite(value) else None
