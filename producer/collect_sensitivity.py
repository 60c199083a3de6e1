"""Collecting sensitivities: shards are kept as they are; results and report are made from all of them."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import numpy as np

from producer.folder.calib_folder import (
    CalibFolder,
    RequestFile,
    RunFile,
    SensitivityFolder,
    read_records,
    write_record,
)
from producer.folder.intake import Intake, take_in
from producer.report.render import render_report
from producer.results.merge import FinishedTask, merge_results
from producer.results.merge_sketch import FinishedSketch, merge_sketch
from producer.results.results import MissingSketch, MissingTask, Results, encode_results, results_csv
from producer.results.sketch import as_the_card_has_it, estimate
from producer.results.verify import pairs_to_verify
from shared.errors import RunMismatchError
from shared.files import write_atomically
from shared.kinds.kind import Task
from shared.kinds.sensitivity import SensitivityShard, SensitivityTask
from shared.kinds.sketch import SketchShard, SketchTask
from shared.model_card import ModelCard
from shared.stores.records import Record
from shared.stores.store import ShardStore

MAX_PREVIEWS = 8


def collect_sensitivity(
    place: SensitivityFolder,
    request: RequestFile,
    run: RunFile,
    card: ModelCard,
    store: ShardStore,
    told: Callable[[Task], None] = lambda task: None,
) -> Intake:
    """Take finished (layer, bits) out of the store."""
    records, lost = _whole_shards(place, request.tasks(run))

    def keep(record: Record, data: bytes) -> None:
        _shard_class(record.task).from_bytes(data)
        if record.fingerprint != card.fingerprint:
            raise RunMismatchError(
                f"{record.host} has other model files (fingerprint {record.fingerprint[:12]}, the run's is "
                f"{card.fingerprint[:12]}); give that machine the same checkpoint"
            )
        write_atomically(place.shard_path(record.id), data)
        write_record(place.records_dir, record)

    intake = take_in(request.tasks(run), records, store, keep, told)
    intake.problems[:0] = lost
    return intake


def _shard_class(task: Task) -> type[SensitivityShard | SketchShard]:
    return SketchShard if isinstance(task, SketchTask) else SensitivityShard


def _whole_shards(place: SensitivityFolder, tasks: Sequence[Task]) -> tuple[dict[str, Record], list[str]]:
    """Records whose shards are there and unaltered; another's record is dropped."""
    records, lost = {}, []
    wanted = {task.id for task in tasks}
    for task_id, record in read_records(place.records_dir).items():
        if task_id not in wanted:
            continue
        path = place.shard_path(task_id)
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256:
            records[task_id] = record
        else:
            (place.records_dir / f"{task_id}.json").unlink(missing_ok=True)
            lost.append(f"{record.task.label}: {path} is missing or altered, to be computed again")
    return records, lost


def choose_pairs_to_verify(
    place: SensitivityFolder, request: RequestFile, run: RunFile, card: ModelCard
) -> RequestFile:
    """Once the sketch is complete: ask for its most consequential pairs to be measured exactly."""
    sketch = request.sketch
    if sketch is None or not sketch.verify or request.verify:
        return request
    if {task.id for task in request.sketch_tasks(run)} - read_records(place.records_dir).keys():
        return request
    finished = _finished_sketches(place, request, run, card)
    pairs = pairs_to_verify(estimate(done.shard for done in finished), card, sketch.verify)
    request = msgspec.structs.replace(request, verify=tuple(pairs))
    place.write_request(request)
    return request


def write_results(
    folder: CalibFolder, place: SensitivityFolder, card: ModelCard, reasons: dict[str, str]
) -> Results | None:
    """Write results.json, results.csv and report.html from what is there; None while nothing is.

    Args:
        folder: the calibration.
        place: the sensitivity run.
        card: the model's layers.
        reasons: task id to why it is not there.
    """
    run, request = folder.require_run(), place.require_request()
    exact = _finished_pairs(place, request, run)
    sketches = _finished_sketches(place, request, run, card)
    if not exact and not sketches:
        return None
    there = {pair.task.id for pair in exact} | {sketch.task.id for sketch in sketches}
    absent = [task for task in request.tasks(run) if task.id not in there]
    told = {task.id: reasons.get(task.id, "not enqueued") for task in absent}
    merge = partial(merge_sketch, sketches) if sketches else merge_results
    results = merge(
        exact,
        run=run.settings,
        sensitivity=request.settings,
        card=card,
        missing=[
            MissingTask(layer=task.layer, bits=task.bits, reason=told[task.id])
            for task in absent
            if isinstance(task, SensitivityTask)
        ],
        missing_sketches=[
            MissingSketch(sample=task.sample, probe_group=task.probe_group, reason=told[task.id])
            for task in absent
            if isinstance(task, SketchTask)
        ],
        calibration_records=list(folder.read_records().values()),
    )
    measured_on = [pair.shard.image_index for pair in exact]
    measured_on += [sketch.shard.image_index for sketch in sketches]
    images = sorted({int(image) for index in measured_on for image in np.ravel(index)})
    write_atomically(place.results_path, encode_results(results))
    write_atomically(place.csv_path, results_csv(results).encode())
    write_atomically(place.report_path, render_report(results, _previews(folder, images)).encode())
    return results


def _finished_pairs(place: SensitivityFolder, request: RequestFile, run: RunFile) -> list[FinishedTask]:
    records = read_records(place.records_dir)
    return [
        FinishedTask(task=task, shard=SensitivityShard.from_bytes(data), record=records[task.id])
        for task in request.exact_tasks(run)
        if task.id in records and (data := _read_shard(place, task)) is not None
    ]


def _finished_sketches(
    place: SensitivityFolder, request: RequestFile, run: RunFile, card: ModelCard
) -> list[FinishedSketch]:
    records = read_records(place.records_dir)
    return [
        FinishedSketch(
            task=task, shard=as_the_card_has_it(SketchShard.from_bytes(data), card), record=records[task.id]
        )
        for task in request.sketch_tasks(run)
        if task.id in records and (data := _read_shard(place, task)) is not None
    ]


def _read_shard(place: SensitivityFolder, task: Task) -> bytes | None:
    """None when it vanished since the last pass; the next one has it computed again."""
    path = place.shard_path(task.id)
    return path.read_bytes() if path.is_file() else None


def _previews(folder: CalibFolder, images: Sequence[int]) -> list[tuple[str, bytes]]:
    """Prompt and PNG of the first of these images."""
    prompts = folder.require_run().prompts
    paths = [(prompts[image], folder.preview_path(image)) for image in images[:MAX_PREVIEWS]]
    return [(prompt, path.read_bytes()) for prompt, path in paths if path.is_file()]
