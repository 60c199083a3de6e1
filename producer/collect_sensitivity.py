"""Collecting sensitivities: shards are kept as they are; results and report are made from all of them."""

import hashlib
from collections.abc import Callable

from producer.calib_folder import (
    CalibFolder,
    RequestFile,
    RunFile,
    SensitivityFolder,
    read_records,
    write_record,
)
from producer.intake import Intake, take_in
from producer.merge import FinishedTask, merge_results
from producer.report import render_report
from producer.results import MissingTask, Results, encode_results, results_csv
from shared.errors import InputError, RunMismatchError, ShardCorruptError
from shared.files import write_atomically
from shared.model_card import ModelCard
from shared.records import Record
from shared.shards import SensitivityShard
from shared.store import ShardStore
from shared.tasks import SensitivityTask, Task

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
        SensitivityShard.from_bytes(data)
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


def _whole_shards(
    place: SensitivityFolder, tasks: list[SensitivityTask]
) -> tuple[dict[str, Record], list[str]]:
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


def write_results(
    folder: CalibFolder, place: SensitivityFolder, card: ModelCard, reasons: dict[str, str]
) -> Results:
    """Write results.json, results.csv and report.html from what is there.

    Args:
        folder: the calibration.
        place: the sensitivity run.
        card: the model's layers.
        reasons: task id to why it is not there.
    """
    run, request = folder.require_run(), place.require_request()
    finished, missing = [], []
    records = read_records(place.records_dir)
    for task in request.tasks(run):
        record = records.get(task.id)
        if record is None:
            reason = reasons.get(task.id, "not enqueued")
            missing.append(MissingTask(layer=task.layer, bits=task.bits, reason=reason))
            continue
        try:
            shard = SensitivityShard.from_bytes(place.shard_path(task.id).read_bytes())
        except ShardCorruptError as error:
            raise InputError(f"{place.shard_path(task.id)}: {error}; run `producer collect` again") from None
        finished.append(FinishedTask(task=task, shard=shard, record=record))
    results = merge_results(
        finished,
        run=run.settings,
        sensitivity=request.settings,
        card=card,
        missing=missing,
        calibration_records=folder.read_records().values(),
    )
    write_atomically(place.results_path, encode_results(results))
    write_atomically(place.csv_path, results_csv(results).encode())
    write_atomically(place.report_path, render_report(results, _previews(folder)).encode())
    return results


def _previews(folder: CalibFolder) -> list[tuple[str, bytes]]:
    run = folder.require_run()
    shown = list(enumerate(run.prompts))[:MAX_PREVIEWS]
    paths = [(prompt, folder.preview_path(index)) for index, prompt in shown]
    return [(prompt, path.read_bytes()) for prompt, path in paths if path.is_file()]
