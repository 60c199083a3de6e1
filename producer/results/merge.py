"""Merge finished sensitivity tasks into results. Their order does not matter."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from producer.results.measure import finite, measure
from producer.results.results import (
    BUCKET_NAMES,
    BucketName,
    HostTimings,
    Intervals,
    LayerRow,
    Measurement,
    Metrics,
    MissingSketch,
    MissingTask,
    NoiseFloor,
    Results,
)
from shared import metrics
from shared.errors import RunMismatchError
from shared.kinds.registry import kind_of
from shared.kinds.sensitivity import SensitivityShard, SensitivityTask
from shared.layer_place import place_by_number
from shared.metrics import BUCKETS, Bucket
from shared.model_card import LayerInfo, ModelCard
from shared.runs import RunSettings, SensitivitySettings
from shared.stores.records import Record

LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedTask:
    """A (layer, bits) that is measured."""

    task: SensitivityTask
    shard: SensitivityShard
    record: Record


def merge_results(
    finished: Iterable[FinishedTask],
    *,
    run: RunSettings,
    sensitivity: SensitivitySettings,
    card: ModelCard,
    missing: Iterable[MissingTask] = (),
    missing_sketches: Iterable[MissingSketch] = (),
    calibration_records: Iterable[Record] = (),
) -> Results:
    """Return the results of finished tasks, with the missing ones listed.

    Args:
        finished: in any order, at most one per (layer, bits).
        run: the run's settings.
        sensitivity: the sensitivity run's settings.
        card: the model's layers.
        missing: wanted (layer, bits) that are not measured, with the reason.
        missing_sketches: wanted sketches that are not done, with the reason.
        calibration_records: used for the timings only.

    Raises:
        RunMismatchError: a task has other settings, another model or an unknown layer.
    """
    order = {layer.path: index for index, layer in enumerate(card.layers)}
    pairs, absent = list(finished), list(missing)
    absent_sketches = sorted(missing_sketches, key=lambda sketch: (sketch.sample, sketch.probe_batch))
    _check(pairs, absent, run, sensitivity, card)
    pairs.sort(key=lambda pair: (order[pair.task.layer], pair.task.bits))
    absent.sort(key=lambda task: (order[task.layer], task.bits))
    measured = measure([pair.shard for pair in pairs], run.num_steps, level=LEVEL)
    measurements = tuple(_measurement(pair, buckets) for pair, buckets in zip(pairs, measured, strict=True))
    return Results(
        run_id=run.id,
        sensitivity_id=sensitivity.id,
        complete=not absent and not absent_sketches,
        run=run,
        sensitivity=sensitivity,
        fingerprint=card.fingerprint,
        model_parameters=card.parameters,
        images=max((len(np.unique(pair.shard.image_index)) for pair in pairs), default=0),
        samples=max((len(pair.shard.step_index) for pair in pairs), default=0),
        bits=tuple(sorted({pair.task.bits for pair in pairs} | {task.bits for task in absent})),
        bucket_steps=_bucket_steps(run.num_steps),
        intervals=Intervals(level=LEVEL, min_images=metrics.MIN_IMAGES),
        noise_floor=_noise_floor(measurements),
        layers=tuple(_layer_row(layer) for layer in card.layers),
        measurements=measurements,
        missing=tuple(absent),
        missing_sketches=tuple(absent_sketches),
        hosts=host_timings([*calibration_records, *(pair.record for pair in pairs)]),
    )


def _check(
    pairs: Sequence[FinishedTask],
    absent: Sequence[MissingTask],
    run: RunSettings,
    sensitivity: SensitivitySettings,
    card: ModelCard,
) -> None:
    known = {layer.path for layer in card.layers}
    for pair in pairs:
        task, label = pair.task, pair.task.label
        if task.run != run or task.sensitivity != sensitivity or pair.record.task != task:
            raise RunMismatchError(f"{label} was measured for another run: {task.id}")
        if pair.record.fingerprint != card.fingerprint:
            raise RunMismatchError(f"{label} was measured with another model: {pair.record.fingerprint[:12]}")
        steps = pair.shard.step_index
        if steps.min() < 0 or steps.max() >= run.num_steps:
            raise RunMismatchError(f"{label} holds steps that a run of {run.num_steps} steps does not have")
    measured = [(pair.task.layer, pair.task.bits) for pair in pairs]
    measured += [(task.layer, task.bits) for task in absent]
    if unknown := sorted({layer for layer, _ in measured} - known):
        raise RunMismatchError(f"the model has no layer {unknown[0]}")
    if twice := [pair for pair, count in Counter(measured).items() if count > 1]:
        raise RunMismatchError(f"{twice[0][0]} at {twice[0][1]} bits was given twice")


def _measurement(pair: FinishedTask, buckets: dict[BucketName, Metrics]) -> Measurement:
    shard = pair.shard
    weight_error = metrics.relative_error(shard.weight_squared_error, shard.weight_squared_norm)
    return Measurement(
        layer=pair.task.layer,
        bits=pair.task.bits,
        bits_per_weight=float(shard.bits_per_weight),
        dead=bool(shard.dead),
        weight_relative_error=finite(float(weight_error)),
        host=pair.record.host,
        seconds=pair.record.seconds,
        buckets=buckets,
    )


def _layer_row(layer: LayerInfo) -> LayerRow:
    outputs, inputs = layer.shape
    place = layer.place or place_by_number(layer.path)
    return LayerRow(path=layer.path, shape=layer.shape, parameters=outputs * inputs, place=place)


def _bucket_steps(num_steps: int) -> dict[Bucket, tuple[int, int]]:
    ends = [-(-third * num_steps // 3) for third in range(4)]
    return {bucket: (ends[i], ends[i + 1]) for i, bucket in enumerate(BUCKETS)}


def _noise_floor(measurements: Sequence[Measurement]) -> dict[BucketName, NoiseFloor]:
    floors: dict[BucketName, NoiseFloor] = {}
    for bucket in BUCKET_NAMES:
        found = [pair.buckets[bucket].noise_relative_error for pair in measurements if bucket in pair.buckets]
        values = [value for value in found if value is not None]
        if values:
            floors[bucket] = NoiseFloor(median=median(values), maximum=max(values))
    return floors


def host_timings(records: Sequence[Record]) -> tuple[HostTimings, ...]:
    """Return what each host did, by kind of task."""
    by_host: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        by_host[kind_of(record.task).name, record.host].append(record)
    return tuple(_timings(kind, host, by_host[kind, host]) for kind, host in sorted(by_host))


def _timings(kind: str, host: str, records: Sequence[Record]) -> HostTimings:
    # Sorted, because a sum of floats depends on the order.
    seconds = sorted(record.seconds for record in records)
    return HostTimings(
        host=host,
        kind=kind,
        tasks=len(records),
        workers=len({record.worker for record in records}),
        seconds_total=sum(seconds),
        seconds_median=median(seconds),
        first_finished_at=min(record.finished_at for record in records),
        last_finished_at=max(record.finished_at for record in records),
        versions=_versions(records),
    )


def _versions(records: Sequence[Record]) -> dict[str, str]:
    """Return versions by name. A host that was updated in between has several, joined by "and"."""
    found: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, version in record.versions.items():
            found[name].add(version)
    return {name: " and ".join(sorted(found[name])) for name in sorted(found)}
