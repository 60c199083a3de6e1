"""manifest.json: what has been collected, as other people's notebooks read it."""

import msgspec

from producer.folder.calib_folder import CalibFolder, RunFile
from shared.files import write_atomically
from shared.kinds.calibration import CalibrationTask
from shared.stores.records import Record


def write_manifest(
    folder: CalibFolder, run: RunFile, records: dict[str, Record], sigmas: list[float]
) -> None:
    """Write the manifest of the collected images, in the layout's order, if it would change.

    It is derived from the records alone, each of which was written after its image's samples: a manifest
    never lists a sample that is not there whole.
    """
    tasks = [record.task for record in records.values() if isinstance(record.task, CalibrationTask)]
    tasks.sort(key=lambda task: task.image_index)
    steps = run.settings.num_steps
    content = {
        "n_completed": len(tasks),
        "num_steps": steps,
        "sample_files": [
            folder.sample_name(task.image_index, step) for task in tasks for step in range(steps)
        ],
        "run_id": run.settings.id,
        "settings": run.settings,
        "sigmas": sigmas,
        "images": [
            {"image_index": task.image_index, "prompt": task.prompt, "seed": task.seed} for task in tasks
        ],
        "fingerprint": next((record.fingerprint for record in records.values()), None),
    }
    data = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
    if not folder.manifest_path.exists() or folder.manifest_path.read_bytes() != data:
        write_atomically(folder.manifest_path, data)
