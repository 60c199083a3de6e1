"""Write the results of a sensitivity run from the shards in its folder."""

from functools import partial
from pathlib import Path

from producer.folder.calib_folder import CalibFolder, SensitivityFolder
from producer.folder.request_file import RequestFile
from producer.folder.run_file import RunFile
from producer.folder.tasks import exact_tasks, sketch_tasks
from producer.results.merge import FinishedTask, merge_results
from producer.results.merge_sketch import FinishedSketch, merge_sketch
from producer.results.results import MissingSketch, MissingTask, encode_results, results_csv
from producer.results.sketch import as_the_card_has_it
from shared.files import write_atomically
from shared.kinds.kind import Task
from shared.kinds.sensitivity import SensitivityShard, SensitivityTask
from shared.kinds.sketch import SketchShard, SketchTask
from shared.model_card import ModelCard


def write_results(folder: CalibFolder, subfolder: SensitivityFolder, reasons: dict[str, str]) -> Path | None:
    """Write results.json and results.csv; return the path of the former.

    Args:
        folder: the calibration folder.
        subfolder: the sensitivity run.
        reasons: by task id, why a task is missing.

    Returns:
        None while there is no shard or no model card.
    """
    run, request, card = folder.require_run(), subfolder.require_request(), folder.read_model()
    if card is None:
        return None
    exact = finished_pairs(subfolder, request, run)
    sketches = finished_sketches(subfolder, request, run, card)
    if not exact and not sketches:
        return None
    there = {pair.task.id for pair in exact} | {sketch.task.id for sketch in sketches}
    absent = [
        task for task in [*sketch_tasks(request, run), *exact_tasks(request, run)] if task.id not in there
    ]
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
            MissingSketch(sample=task.sample, probe_batch=task.probe_batch, reason=told[task.id])
            for task in absent
            if isinstance(task, SketchTask)
        ],
        calibration_records=list(folder.records.read().values()),
    )
    write_atomically(subfolder.results_path, encode_results(results))
    write_atomically(subfolder.csv_path, results_csv(results).encode())
    return subfolder.results_path


def finished_pairs(subfolder: SensitivityFolder, request: RequestFile, run: RunFile) -> list[FinishedTask]:
    records = subfolder.records.read()
    return [
        FinishedTask(task=task, shard=SensitivityShard.from_bytes(data), record=records[task.id])
        for task in exact_tasks(request, run)
        if task.id in records and (data := _read_shard(subfolder, task)) is not None
    ]


def finished_sketches(
    subfolder: SensitivityFolder, request: RequestFile, run: RunFile, card: ModelCard
) -> list[FinishedSketch]:
    records = subfolder.records.read()
    return [
        FinishedSketch(
            task=task, shard=as_the_card_has_it(SketchShard.from_bytes(data), card), record=records[task.id]
        )
        for task in sketch_tasks(request, run)
        if task.id in records and (data := _read_shard(subfolder, task)) is not None
    ]


def _read_shard(subfolder: SensitivityFolder, task: Task) -> bytes | None:
    """Return a shard; None if its file is missing. The next pass enqueues its task again."""
    path = subfolder.shard_path(task.id)
    return path.read_bytes() if path.is_file() else None
