"""Which images of a run are collected, and whole still."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from producer.folder.json_file import Stamp, stamp_of
from producer.folder.sample_seals import first_damage
from shared.kinds.calibration import CalibrationTask
from shared.stores.records import Record

if TYPE_CHECKING:
    from producer.folder.calib_folder import CalibFolder


class CollectedImages:
    """Looks at each image's samples once, and again when files came or went that this process did not write.

    So a command notices all that happened before it began; a sample whose bytes are changed while it runs
    is noticed by the next command.
    """

    def __init__(self) -> None:
        self._whole: dict[str, Record] = {}
        self._stamp: Stamp | None = None

    def look(
        self, folder: "CalibFolder", tasks: Sequence[CalibrationTask], *, renew: bool = False
    ) -> tuple[dict[str, Record], dict[str, str]]:
        """Records of whole images by task id, and of each other image with a record what is wrong with it.

        Nothing is written, unless `renew` is set: then seals that have grown old are renewed.
        """
        known = folder.records.read()
        stamp = stamp_of(folder.samples_dir)
        trusted = self._whole if stamp == self._stamp else {}
        records: dict[str, Record] = {}
        damages: dict[str, str] = {}
        for task in tasks:
            record = known.get(task.id)
            if record is None:
                continue
            if trusted.get(task.id) is not record and (damage := _damage(folder, task, renew)):
                damages[task.id] = f"{task.label}: {damage}"
            else:
                records[task.id] = record
        self._whole, self._stamp = dict(records), stamp
        return records, damages

    def wrote(self, folder: "CalibFolder") -> None:
        """The samples that appeared since the last look are this process's own."""
        self._stamp = stamp_of(folder.samples_dir)


def _damage(folder: "CalibFolder", task: CalibrationTask, renew: bool) -> str | None:
    return first_damage(folder.seal_path(task.id), sample_paths(folder, task), renew=renew)


def sample_paths(folder: "CalibFolder", task: CalibrationTask) -> list[Path]:
    """One a step, in order."""
    return [folder.root / folder.sample_name(task.image_index, step) for step in range(task.run.num_steps)]
