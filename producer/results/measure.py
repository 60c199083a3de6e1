"""From the shards of many (layer, bits) to the metrics of each in each bucket, all at once."""

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
    """Return the metrics of each shard by bucket, with intervals of that coverage over images."""
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
    """The shards of pairs that were measured on the same samples, stacked to (pairs, n)."""

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
        """(n,) the samples of a bucket."""
        if bucket == "all":
            return np.ones(len(self.step_index), dtype=bool)
        return metrics.in_bucket(self.step_index, num_steps, bucket)

    def metrics(self, mask: Booleans, level: float) -> list[Metrics]:
        """Of each pair, over the samples in `mask`."""
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
            # NaN where a sketch doesn't know them.
            "cosine": self.cosine[:, mask].mean(axis=1),
            "max_abs": self.max_abs[:, mask].max(axis=1),
            # No floor is 0: it was not measured.
            "noise_relative_error": metrics.relative_error(np.where(floor > 0, floor, np.nan), reference),
        }
        samples, within_noise = int(mask.sum()), metrics.is_within_noise(error, floor)
        rows = [
            {"samples": samples, "within_noise": bool(within_noise[row])}
            | {name: finite(column[row]) for name, column in columns.items()}
            for row in range(len(errors))
        ]
        return msgspec.convert(rows, list[Metrics])


def finite(value: float | np.float64) -> float | None:
    """None for infinity and NaN, which JSON can't hold."""
    return float(value) if np.isfinite(value) else None
