"""Merge a sketch and the exact measurements that verify it into results."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from producer.results.measure import finite, measure
from producer.results.merge import LEVEL, FinishedTask, host_timings, merge_results
from producer.results.results import Measurement, MissingSketch, MissingTask, Results, VerifiedPair
from producer.results.sketch import Estimates, estimate
from shared import metrics
from shared.errors import RunMismatchError
from shared.kinds.sketch import SketchShard, SketchTask
from shared.model_card import ModelCard
from shared.runs import RunSettings, SensitivitySettings
from shared.stores.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSketch:
    """A finished sketch task: one sample and one batch of probes."""

    task: SketchTask
    shard: SketchShard
    record: Record


def merge_sketch(
    finished: Iterable[FinishedSketch],
    verified: Iterable[FinishedTask] = (),
    *,
    run: RunSettings,
    sensitivity: SensitivitySettings,
    card: ModelCard,
    missing: Iterable[MissingTask] = (),
    missing_sketches: Iterable[MissingSketch] = (),
    calibration_records: Iterable[Record] = (),
) -> Results:
    """Return estimates with standard errors for all (layer, bits), or exact measurements if there are any.

    Args:
        finished: in any order, at most one per sample and probe batch.
        verified: exact measurements of some (layer, bits).
        run: the run's settings.
        sensitivity: the sensitivity run's settings.
        card: the model's layers.
        missing: (layer, bits) that are still to be verified, with the reason.
        missing_sketches: wanted sketches that are not done, with the reason.
        calibration_records: used for the timings only.

    Raises:
        RunMismatchError: nothing is finished, or a task has other settings or another model.
    """
    sketches, exact = list(finished), list(verified)
    _check(sketches, run, sensitivity, card)
    estimates = estimate(sketch.shard for sketch in sketches)
    results = merge_results(
        exact,
        run=run,
        sensitivity=sensitivity,
        card=card,
        missing=missing,
        missing_sketches=missing_sketches,
    )
    measured = {(pair.layer, pair.bits): pair for pair in results.measurements}
    sketched = _measurements(estimates, card, run)
    order = {layer.path: index for index, layer in enumerate(card.layers)}
    merged = {(pair.layer, pair.bits): pair for pair in sketched} | measured
    records = [
        *calibration_records,
        *(sketch.record for sketch in sketches),
        *(pair.record for pair in exact),
    ]
    return msgspec.structs.replace(
        results,
        images=max(results.images, len(set(estimates.image_index.tolist()))),
        samples=max(results.samples, len(estimates.image_index)),
        bits=tuple(sorted({*results.bits, *estimates.bits})),
        measurements=tuple(sorted(merged.values(), key=lambda pair: (order[pair.layer], pair.bits))),
        sketches=len(sketches),
        verified=_verified(sketched, measured),
        hosts=host_timings(records),
    )


def _check(
    sketches: Sequence[FinishedSketch], run: RunSettings, sensitivity: SensitivitySettings, card: ModelCard
) -> None:
    for sketch in sketches:
        task, label = sketch.task, sketch.task.label
        if task.run != run or task.sensitivity != sensitivity or sketch.record.task != task:
            raise RunMismatchError(f"{label} was made for another run: {task.id}")
        if sketch.record.fingerprint != card.fingerprint or len(sketch.shard.products) != len(card.layers):
            raise RunMismatchError(f"{label} was made with another model: {sketch.record.fingerprint[:12]}")


def _measurements(estimates: Estimates, card: ModelCard, run: RunSettings) -> list[Measurement]:
    """Return one measurement per measurable (layer, bits)."""
    pairs = [
        (index, layer.path, bits)
        for index, layer in enumerate(card.layers)
        for bits in estimates.bits
        if estimates.example.measurable[index]
    ]
    shards = [estimates.as_shard(index, bits) for index, _, bits in pairs]
    buckets = measure(shards, run.num_steps, level=LEVEL)
    return [
        Measurement(
            layer=path,
            bits=bits,
            bits_per_weight=float(shard.bits_per_weight),
            dead=bool(shard.dead),
            weight_relative_error=finite(
                float(metrics.relative_error(shard.weight_squared_error, shard.weight_squared_norm))
            ),
            standard_error=float(estimates.standard_error[index, estimates.bits.index(bits)]),
            host="",
            seconds=0.0,
            buckets=by_bucket,
        )
        for (index, path, bits), shard, by_bucket in zip(pairs, shards, buckets, strict=True)
    ]


def _verified(
    sketched: Sequence[Measurement], measured: dict[tuple[str, int], Measurement]
) -> tuple[VerifiedPair, ...]:
    return tuple(
        VerifiedPair(
            layer=sketch.layer,
            bits=sketch.bits,
            sketch_relative_error=sketch.buckets["all"].relative_error,
            sketch_standard_error=sketch.standard_error,
            exact_relative_error=exact.buckets["all"].relative_error,
        )
        for sketch in sketched
        if (exact := measured.get((sketch.layer, sketch.bits))) is not None
    )
