"""Which images of a run are collected and still intact."""

from collections.abc import Sequence

from producer.folder.image_files import ImageFiles
from producer.folder.json_file import Stamp, stamp_of
from producer.folder.record_folder import RecordFolder
from producer.folder.sample_seals import first_damage
from shared.kinds.calibration import CalibrationTask
from shared.stores.records import Record


class CollectedImages:
    """Checks each image's samples once, and again when another process has added or removed files.

    A command notices every change that was made before it started. If the bytes of a sample are changed
    while it runs, the next command notices.
    """

    def __init__(self, files: ImageFiles, records: RecordFolder) -> None:
        self._files, self._known = files, records
        self._whole: dict[str, Record] = {}
        self._stamp: Stamp | None = None

    def look(
        self, tasks: Sequence[CalibrationTask], *, renew: bool = False
    ) -> tuple[dict[str, Record], dict[str, str]]:
        """Return the records of intact images, and what is wrong with the damaged ones, both by task id.

        With `renew`, outdated seals are written anew; otherwise nothing is written.
        """
        known = self._known.read()
        stamp = stamp_of(self._files.samples_dir)
        trusted = self._whole if stamp == self._stamp else {}
        records: dict[str, Record] = {}
        damages: dict[str, str] = {}
        for task in tasks:
            record = known.get(task.id)
            if record is None:
                continue
            if trusted.get(task.id) is not record and (damage := self._damage(task, renew)):
                damages[task.id] = f"{task.label}: {damage}"
            else:
                records[task.id] = record
        self._whole, self._stamp = dict(records), stamp
        return records, damages

    def wrote(self) -> None:
        """Note that this process has written the newest samples itself."""
        self._stamp = stamp_of(self._files.samples_dir)

    def _damage(self, task: CalibrationTask, renew: bool) -> str | None:
        return first_damage(self._files.seal_path(task.id), self._files.sample_paths(task), renew=renew)
