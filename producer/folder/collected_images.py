"""Which images of a run are collected and still intact."""

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
    """Checks each image's samples once, and again when another process has added or removed files.

    A command notices every change that was made before it started. If the bytes of a sample are changed
    while it runs, the next command notices.
    """

    def __init__(self) -> None:
        self._whole: dict[str, Record] = {}
        self._stamp: Stamp | None = None

    def look(
        self, folder: "CalibFolder", tasks: Sequence[CalibrationTask], *, renew: bool = False
    ) -> tuple[dict[str, Record], dict[str, str]]:
        """Return the records of intact images, and what is wrong with the damaged ones, both by task id.

        With `renew`, outdated seals are written anew; otherwise nothing is written.
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
        """Note that this process has written the newest samples itself."""
        self._stamp = stamp_of(folder.samples_dir)


def _damage(folder: "CalibFolder", task: CalibrationTask, renew: bool) -> str | None:
    return first_damage(folder.seal_path(task.id), sample_paths(folder, task), renew=renew)


def sample_paths(folder: "CalibFolder", task: CalibrationTask) -> list[Path]:
    """Return the paths of an image's samples, in the order of its steps."""
    return [folder.root / folder.sample_name(task.image_index, step) for step in range(task.run.num_steps)]
