"""Estimate the effect of every (layer, bits), with a standard error, from the shards of a sketch.

A shard holds <r, dv> for P random vectors r of +-1, where dv is how much a candidate changes the guided
velocity of one sample, to first order. The mean of <r, dv>^2 over r is ||dv||^2 (Hutchinson's
estimator, 1990).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from shared.errors import RunMismatchError
from shared.kinds.sensitivity import SensitivityShard
from shared.kinds.sketch import SketchShard
from shared.metrics import Floats, Integers
from shared.model_card import ModelCard

PATCHES = "x_embedder.proj"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """Estimates for L layers at B bit widths on n samples."""

    bits: tuple[int, ...]
    squared_error: Floats
    """(L, B, n): ||dv||^2, estimated without bias."""
    variance: Floats
    """(L, B, n): variance of squared_error, from the choice of probes."""
    squared_reference: Floats
    """(n,): ||v||^2."""
    image_index: Integers
    """(n,)."""
    step_index: Integers
    """(n,)."""
    example: SketchShard
    """One of the shards, for values that do not depend on the sample."""
    dead: np.ndarray[tuple[int], np.dtype[np.bool_]]
    """(L,): no gradient reached the layer on any sample."""

    @property
    def relative_error(self) -> Floats:
        """(L, B): root of the summed squared error over the summed squared reference."""
        relative: Floats = np.sqrt(self.squared_error.sum(axis=-1) / self.squared_reference.sum())
        return relative

    @property
    def standard_error(self) -> Floats:
        """(L, B): standard error of `relative_error`, from the choice of probes but not of samples."""
        error = self.squared_error.sum(axis=-1)
        spread = np.sqrt(self.variance.sum(axis=-1))
        # d sqrt(y) = dy / (2 sqrt(y))
        relative: Floats = np.divide(
            spread * self.relative_error, 2 * error, out=np.zeros_like(error), where=error > 0
        )
        return relative

    def as_shard(self, layer: int, bits: int) -> SensitivityShard:
        """Return the estimates of one (layer, bits) in the form of an exact measurement.

        Cosine, largest difference and noise floor are NaN, because a sketch does not know them.
        """
        column, unknown = self.bits.index(bits), np.full(len(self.image_index), np.nan)
        return SensitivityShard(
            image_index=self.image_index,
            step_index=self.step_index,
            squared_error=self.squared_error[layer, column],
            squared_reference=self.squared_reference,
            noise_squared_error=unknown,
            cosine=unknown,
            max_abs=unknown,
            output_size=self.example.output_size,
            dead=self.dead[layer],
            weight_squared_error=self.example.weight_squared_error[layer, column],
            weight_squared_norm=self.example.weight_squared_norm[layer],
            bits_per_weight=self.example.bits_per_weight[layer, column],
        )


def as_the_card_has_it(shard: SketchShard, card: ModelCard) -> SketchShard:
    """Return the shard without the patch embedding, if the card is older than measuring that layer."""
    if len(shard.products) != len(card.layers) + 1 or any(row.path == PATCHES for row in card.layers):
        return shard
    # Workers put it after all other embedders.
    position = next(i for i, row in enumerate(card.layers) if "embedder" not in row.path.partition(".")[0])
    by_layer = ("products", "dead", "measurable", "weight_squared_error", "weight_squared_norm")
    return replace(
        shard,
        **{name: np.delete(getattr(shard, name), position, 0) for name in (*by_layer, "bits_per_weight")},
    )


def estimate(shards: Iterable[SketchShard]) -> Estimates:
    """Merge all probes of all samples. The order of the shards does not matter.

    Raises:
        RunMismatchError: there are no shards, or they have different layers or bit widths.
    """
    by_sample: dict[tuple[int, int], list[SketchShard]] = defaultdict(list)
    for shard in shards:
        by_sample[int(shard.image_index), int(shard.step_index)].append(shard)
    if not by_sample:
        raise RunMismatchError("no sample has been sketched yet; run `producer collect` when one is")
    samples = sorted(by_sample)
    example = by_sample[samples[0]][0]
    for shard in (shard for batches in by_sample.values() for shard in batches):
        if shard.bits.tolist() != example.bits.tolist() or len(shard.products) != len(example.products):
            raise RunMismatchError("sketches of different layers or bit widths can't be merged")
    # Sorted, because a sum of floats depends on the order.
    squares = [
        np.sort(np.concatenate([shard.products for shard in by_sample[sample]], axis=-1) ** 2, axis=-1)
        for sample in samples
    ]
    error = np.stack([square.mean(axis=-1) for square in squares], axis=-1)
    probes = np.array([square.shape[-1] for square in squares])
    by_batch = [by_sample[sample] for sample in samples]
    return Estimates(
        bits=tuple(int(bits) for bits in example.bits),
        squared_error=error,
        # Var <r, u>^2 = 2 (||u||^4 - sum u_i^4) for +-1; the mean of P such squares, squared, is on average
        # ||u||^4 (1 + 2 / P). So this is an upper bound, and a tight one for outputs of many elements.
        variance=2 * error**2 / (probes + 2),
        squared_reference=np.array([float(batches[0].squared_reference) for batches in by_batch]),
        image_index=np.array([image for image, _ in samples]),
        step_index=np.array([step for _, step in samples]),
        example=example,
        dead=np.all([shard.dead for batches in by_batch for shard in batches], axis=0),
    )
