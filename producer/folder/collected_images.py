"""Which images of a run are collected, and whole still."""

from pathlib import Path

from producer.folder.calib_folder import CalibFolder, RunFile
from producer.folder.sample_seals import first_damage
from shared.kinds.calibration import CalibrationTask
from shared.stores.records import Record


def collected_images(
    folder: CalibFolder, run: RunFile, *, renew: bool = False
) -> tuple[dict[str, Record], dict[str, str]]:
    """Records of whole images by task id, and of each other image that has a record what is wrong with it.

    Nothing is written, unless `renew` is set: then seals that have grown old are renewed.
    """
    known = folder.read_records()
    records: dict[str, Record] = {}
    damages: dict[str, str] = {}
    for task in run.tasks():
        if task.id not in known:
            continue
        damage = first_damage(folder.seal_path(task.id), sample_paths(folder, task), renew=renew)
        if damage is None:
            records[task.id] = known[task.id]
        else:
            damages[task.id] = f"{task.label}: {damage}"
    return records, damages


def sample_paths(folder: CalibFolder, task: CalibrationTask) -> list[Path]:
    """One a step, in order."""
    return [folder.root / folder.sample_name(task.image_index, step) for step in range(task.run.num_steps)]
