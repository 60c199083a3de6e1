"""What sensitivity and sketch have in common: both measure on a sample set, in sensitivity/<id>."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from producer.folder.calib_folder import CalibFolder, SensitivityFolder
from producer.folder.json_file import stamp_of
from producer.folder.request_file import RequestFile
from producer.folder.tasks import exact_tasks, sketch_tasks
from producer.kinds.part import Collected, Part
from shared.errors import RunMismatchError
from shared.files import write_atomically
from shared.kinds.kind import Task
from shared.kinds.registry import kind_of
from shared.stores.records import Record
from shared.stores.store import ShardStore


class SampledPart(Part):
    """A part that saves shards unchanged, and makes results of all of them together."""

    def __init__(
        self, folder: CalibFolder, subfolder: SensitivityFolder, request: RequestFile, tasks: Sequence[Task]
    ) -> None:
        self.folder, self.subfolder, self.request = folder, subfolder, request
        self._tasks = tasks

    def tasks(self) -> Sequence[Task]:
        return self._tasks

    def collected(self, *, closely: bool = False) -> Collected:
        known = self.subfolder.records.read()
        collected = Collected()
        for task in self._tasks:
            if task.id not in known:
                continue
            path = self.subfolder.shard_path(task.id)
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
        if closely and self.subfolder.hashed.get(record.id) != stamp:
            if hashlib.sha256(path.read_bytes()).hexdigest() != record.sha256:
                return False
            self.subfolder.hashed[record.id] = stamp
        return True

    def drop(self, task_id: str) -> None:
        self.subfolder.records.drop(task_id)

    def keep(self, record: Record, shard: bytes) -> None:
        kind_of(record.task).shard.from_bytes(shard)
        card = self.folder.read_model()
        if card is not None and record.fingerprint != card.fingerprint:
            raise RunMismatchError(
                f"{record.host} has other model files (fingerprint {record.fingerprint[:12]}, the run's is "
                f"{card.fingerprint[:12]}); give that machine the same checkpoint"
            )
        write_atomically(self.subfolder.shard_path(record.id), shard)
        self.subfolder.records.write(record)

    def supply(self, store: ShardStore) -> None:
        """Store the sample set again if it is missing, as after Redis was wiped."""
        digest = self.request.settings.sample_set_sha256
        if not store.has_blob(digest):
            store.put_blob(digest, self.subfolder.samples_path.read_bytes())

    def clear_away(self, store: ShardStore) -> None:
        """Delete the sample set, once sketch and exact measurements are both complete."""
        run = self.folder.require_run()
        wanted = [*sketch_tasks(self.request, run), *exact_tasks(self.request, run)]
        known = self.subfolder.records.read()
        if all(task.id in known for task in wanted):
            store.discard_blob(self.request.settings.sample_set_sha256)
