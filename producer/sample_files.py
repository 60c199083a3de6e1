"""Write sample files out of the shards that a folder keeps, or remove them again."""

from collections.abc import Callable
from dataclasses import dataclass, field

from producer.folder.calib_folder import CalibFolder
from producer.folder.collected_images import KeptFiles
from producer.folder.image_samples import delete_samples
from producer.folder.image_samples import write_samples as write_files
from producer.folder.tasks import calibration_tasks
from producer.kinds.calibration import CalibrationPart
from shared.errors import InputError, ShardCorruptError
from shared.kinds.calibration import CalibrationShard, CalibrationTask
from shared.stores.records import Record

Show = Callable[[int, int], None]


@dataclass(slots=True, kw_only=True)
class ChangedSamples:
    """What became of the sample files."""

    files: int = 0
    size: int = 0
    """Of these files, in bytes."""
    images: int = 0
    """Of these files."""
    shards: int = 0
    """Images that were asked for, and whose shard is kept."""
    alone: int = 0
    """Images that were asked for, and have all samples and no shard."""
    damages: list[str] = field(default_factory=list)
    """One line for each image that is damaged."""


def write_samples(
    folder: CalibFolder, max_images: int | None, step_stride: int, show: Show
) -> ChangedSamples:
    """Write the samples that are missing. If this process is killed, the next call goes on.

    Args:
        folder: of the images.
        max_images: only of so many of the collected images, from the first; None for all.
        step_stride: only steps whose index is a multiple of this.
        show: called with how many images are done, of how many.

    Raises:
        InputError: nothing is collected yet.
    """
    with folder.locked("samples"):
        part, tasks, records, changed = _look(folder, max_images)
        for number, task in enumerate(tasks):
            folder.lock.check()
            kept = folder.images.kept(task)
            missing = sorted({*range(0, task.run.num_steps, step_stride)}.difference(kept.steps))
            if missing:
                shard = _shard(folder, records[task.id], changed)
                if shard is None:
                    continue
                changed.size += write_files(folder, task, shard, missing)
                changed.files += len(missing)
                changed.images += 1
                folder.images.seal(task, KeptFiles(sorted({*kept.steps, *missing}), shard=True))
            show(number + 1, len(tasks))
        part.summarize(records)
    return changed


def remove_samples(folder: CalibFolder, show: Show) -> ChangedSamples:
    """Remove all sample files of images whose shard is there and intact.

    First no seal and no manifest names them any more: whoever kills this process leaves files at most, which
    the next call removes.

    Args:
        folder: of the images.
        show: called with how many images are done, of how many.

    Raises:
        InputError: nothing is collected yet, or no shard is kept.
    """
    with folder.locked("samples"):
        part, tasks, records, changed = _look(folder, None)
        if not tasks:
            raise InputError(
                f"{folder.root} keeps no shard (`--samples all`): its samples are all there is, and stay"
            )
        intact = []
        for task in tasks:
            folder.lock.check()
            if _shard(folder, records[task.id], changed) is None:
                continue
            if folder.images.kept(task).steps:
                folder.images.seal(task, KeptFiles((), shard=True))
            intact.append(task)
        part.summarize(records)
        for number, task in enumerate(intact):
            folder.lock.check()
            files, size = delete_samples(folder, task, range(task.run.num_steps))
            changed.files += files
            changed.size += size
            changed.images += files > 0
            show(number + 1, len(intact))
    return changed


def _shard(folder: CalibFolder, record: Record, changed: ChangedSamples) -> CalibrationShard | None:
    """Return an image's shard; None, and the damage noted, if it is not the one that was collected."""
    try:
        return folder.images.shard(record)
    except ShardCorruptError as error:
        changed.damages.append(str(error))
        # Its size and time are as they were sealed. Without the seal, the next pass compares its sha256.
        folder.seal_path(record.id).unlink(missing_ok=True)
        return None


def _look(
    folder: CalibFolder, max_images: int | None
) -> tuple[CalibrationPart, list[CalibrationTask], dict[str, Record], ChangedSamples]:
    """Return the images whose shards are kept, and the records of all intact ones."""
    run = folder.require_run()
    every = calibration_tasks(run)
    records, damages = folder.images.look(every, renew=True)
    if not records and not damages:
        raise InputError(f"{folder.root} holds no images yet; run `producer collect` first")
    asked = [task for task in every if task.id in records or task.id in damages][:max_images]
    tasks = [task for task in asked if task.id in records and folder.images.kept(task).shard]
    damaged = [damages[task.id] for task in asked if task.id in damages]
    changed = ChangedSamples(shards=len(tasks), alone=len(asked) - len(tasks) - len(damaged), damages=damaged)
    return CalibrationPart(folder, run), tasks, records, changed
