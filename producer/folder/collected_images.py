"""Which images of a run are collected and still intact, and which files each of them has."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from producer.folder.image_files import ImageFiles
from producer.folder.image_samples import delete_samples, write_samples
from producer.folder.json_file import Stamp, stamp_of
from producer.folder.record_folder import RecordFolder
from producer.folder.sample_seals import SampleSeal, check_seals, read_seals, write_seals
from shared.errors import ShardCorruptError
from shared.kinds.calibration import CalibrationShard, CalibrationTask
from shared.stores.records import Record


class KeptFiles(NamedTuple):
    """What a collected image has."""

    steps: Sequence[int]
    """Those that have a sample file, in order."""
    shard: bool
    """Its shard was kept. Without one, all steps have a file."""


class CollectedImages:
    """Checks each image's files once, and again when another process has added or removed some.

    A command notices every change that was made before it started. If the bytes of a file are changed
    while it runs, the next command notices.
    """

    def __init__(self, files: ImageFiles, records: RecordFolder, tell: Callable[[str], None]) -> None:
        """`tell` is called with a line about what was mended."""
        self._files, self._known, self._tell = files, records, tell
        self._whole: dict[str, Record] = {}
        self._stamps: tuple[Stamp | None, Stamp | None] | None = None
        self._kept: dict[str, tuple[Stamp | None, KeptFiles]] = {}

    def look(
        self, tasks: Sequence[CalibrationTask], *, renew: bool = False
    ) -> tuple[dict[str, Record], dict[str, str]]:
        """Return the records of intact images, and what is wrong with the damaged ones, both by task id.

        With `renew`, outdated seals are written anew, and so are samples whose shard is intact. A damaged
        shard is given up if all samples are intact. Otherwise nothing is written.
        """
        known = self._known.read()
        now = self._now()
        trusted = self._whole if now == self._stamps else {}
        records: dict[str, Record] = {}
        damages: dict[str, str] = {}
        for task in tasks:
            record = known.get(task.id)
            if record is None:
                continue
            if trusted.get(task.id) is not record and (damage := self._damage(task, record, renew)):
                damages[task.id] = f"{task.label}: {damage}"
            else:
                records[task.id] = record
        self._whole, self._stamps = dict(records), now
        return records, damages

    def kept(self, task: CalibrationTask) -> KeptFiles:
        """Return which files a collected image has, as its seal says."""
        stamp = stamp_of(self._files.seal_path(task.id))
        known = self._kept.get(task.id)
        if known is None or known[0] != stamp or stamp is None:
            return self._read(task)[1]
        return known[1]

    def shard(self, record: Record) -> CalibrationShard:
        """Return the shard that was kept of an image.

        Raises:
            ShardCorruptError: it is gone, or not the one that was collected.
        """
        path = self._files.shard_path(record.id)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ShardCorruptError(f"{path} can't be read ({error.strerror})") from None
        record.check(data)
        return CalibrationShard.from_bytes(data)

    def seal(self, task: CalibrationTask, kept: KeptFiles) -> None:
        """Note which files an image has from now on, and how they are now."""
        write_seals(self._files.seal_path(task.id), self._paths(task, kept))

    def delete_others(self, task: CalibrationTask, kept: KeptFiles) -> None:
        """Delete files of an image that are not among those that it has."""
        steps = set(kept.steps)
        delete_samples(self._files, task, [step for step in range(task.run.num_steps) if step not in steps])
        if not kept.shard:
            self._files.shard_path(task.id).unlink(missing_ok=True)

    def wrote(self) -> None:
        """Note that this process has written the newest files itself."""
        self._stamps = self._now()

    def _now(self) -> tuple[Stamp | None, Stamp | None]:
        return stamp_of(self._files.samples_dir), stamp_of(self._files.shards_dir)

    def _read(self, task: CalibrationTask) -> tuple[dict[str, SampleSeal], KeptFiles]:
        path = self._files.seal_path(task.id)
        stamp, seals = stamp_of(path), read_seals(path)
        kept = self._listed(task, seals)
        self._kept[task.id] = stamp, kept
        return seals, kept

    def _listed(self, task: CalibrationTask, seals: dict[str, SampleSeal]) -> KeptFiles:
        shard, steps = self._files.shard_path(task.id), range(task.run.num_steps)
        # Without a seal: what is there.
        if not (shard.name in seals if seals else shard.exists()):
            return KeptFiles(steps, shard=False)
        paths = self._files.sample_paths(task)
        there = [step for step in steps if (paths[step].name in seals if seals else paths[step].exists())]
        return KeptFiles(there, shard=True)

    def _paths(self, task: CalibrationTask, kept: KeptFiles) -> list[Path]:
        shard = [self._files.shard_path(task.id)] if kept.shard else []
        return [*shard, *self._files.sample_paths(task, kept.steps)]

    def _damage(self, task: CalibrationTask, record: Record, renew: bool) -> str | None:
        seals, kept = self._read(task)
        if kept.shard:
            shard = SampleSeal(
                name=self._files.shard_path(task.id).name, size=record.size, mtime_ns=0, sha256=record.sha256
            )
            seals.setdefault(shard.name, shard)
        files = self._paths(task, kept)
        damage, stale = check_seals(seals, files)
        if damage is None:
            if renew and (stale or len(seals) != len(files)):
                self.seal(task, kept)
            return None
        mended = self._mend(task, record, kept, seals) if renew and kept.shard else None
        if mended is None:
            return damage
        self._tell(f"{task.label}: {damage}; {mended}")
        return None

    def _mend(
        self, task: CalibrationTask, record: Record, kept: KeptFiles, seals: dict[str, SampleSeal]
    ) -> str | None:
        """Make an image whole again from what is intact; return how, or None if that can't be done."""
        try:
            shard = self.shard(record)
        except ShardCorruptError:
            alone = KeptFiles(range(task.run.num_steps), shard=False)
            if len(kept.steps) < len(alone.steps) or check_seals(seals, self._paths(task, alone)).damage:
                return None
            self.seal(task, alone)
            self.delete_others(task, alone)
            return "its samples are whole, and kept without it"
        write_samples(self._files, task, shard, kept.steps)
        self.seal(task, kept)
        return "its samples were written anew from its shard"
