"""What all kinds but calibration have in common: shards are kept unchanged, in a folder of the request."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from producer.folder.calib_folder import CalibFolder
from producer.folder.json_file import stamp_of
from producer.folder.kept_folder import KeptFolder
from producer.folder.record_folder import RecordFolder
from producer.folder.shard_folder import ShardFolder
from producer.kinds.part import BrokenPart, Collected, Part
from shared.errors import InputError, RunMismatchError, ShardCorruptError
from shared.files import write_atomically
from shared.kinds.kind import Task
from shared.kinds.registry import kind_of
from shared.stores.records import Record


def parts_or_troubles(
    folder: CalibFolder, kind: str, subfolders: Sequence[KeptFolder[Any]], part: Callable[..., Part]
) -> list[Part]:
    """Return `part(folder, subfolder)` of each subfolder. One whose request can't be read stops no other."""
    parts: list[Part] = []
    for subfolder in subfolders:
        try:
            subfolder.require_request()
            parts.append(part(folder, subfolder))
        except InputError as error:
            parts.append(BrokenPart(f"{kind} {subfolder.root.name}", str(error)))
    return parts


def check_layers(folder: CalibFolder, layers: int) -> None:
    """Check that a shard has as many layers as the model card.

    Raises:
        ShardCorruptError: it has not.
    """
    card = folder.read_model()
    if card is not None and layers != len(card.layers):
        raise ShardCorruptError(f"a shard of {layers} layers, but the model has {len(card.layers)}")


class KeptPart(Part):
    """A part that saves shards unchanged, and makes results of all of them together."""

    def __init__(self, folder: CalibFolder, subfolder: ShardFolder, tasks: Sequence[Task]) -> None:
        """`subfolder` is where the shards go, with their records."""
        self.folder = folder
        self._kept = subfolder
        self._tasks = tasks

    @property
    def records(self) -> RecordFolder:
        return self._kept.records

    def tasks(self) -> Sequence[Task]:
        return self._tasks

    def collected(self, *, closely: bool = False) -> Collected:
        known = self._kept.records.read()
        collected = Collected()
        for task in self._tasks:
            if task.id not in known:
                continue
            path = self._kept.shard_path(task.id)
            if self._is_whole(known[task.id], path, closely):
                collected.records[task.id] = known[task.id]
            else:
                collected.damages[task.id] = (
                    f"{task.label}: {path} is missing or altered, to be computed again"
                )
        return collected

    def _is_whole(self, record: Record, path: Path, closely: bool) -> bool:
        """Return whether a shard is intact. It is hashed again only after its file has changed."""
        stamp = stamp_of(path)
        if stamp is None or stamp.size != record.size:
            return False
        if closely and self._kept.hashed.get(record.id) != stamp:
            if hashlib.sha256(path.read_bytes()).hexdigest() != record.sha256:
                return False
            self._kept.hashed[record.id] = stamp
        return True

    def drop(self, task_id: str) -> None:
        self._kept.records.drop(task_id)

    def keep(self, record: Record, shard: bytes) -> None:
        kind_of(record.task).shard.from_bytes(shard)
        card = self.folder.read_model()
        if card is not None and record.fingerprint != card.fingerprint:
            raise RunMismatchError(
                f"{record.host} has other model files (fingerprint {record.fingerprint[:12]}, the run's is "
                f"{card.fingerprint[:12]}); give that machine the same checkpoint"
            )
        write_atomically(self._kept.shard_path(record.id), shard)
        self._kept.records.write(record)
