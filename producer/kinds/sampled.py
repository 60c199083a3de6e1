"""What sensitivity and sketch have in common: both measure on a sample set, in sensitivity/<id>."""

from collections.abc import Sequence

from producer.folder.calib_folder import CalibFolder, SensitivityFolder
from producer.folder.request_file import RequestFile
from producer.folder.tasks import exact_tasks, sketch_tasks
from producer.kinds.kept import KeptPart
from shared.errors import InputError
from shared.kinds.kind import Task
from shared.stores.store import ShardStore


class SampledPart(KeptPart):
    """A part whose workers need a sample set."""

    def __init__(
        self, folder: CalibFolder, subfolder: SensitivityFolder, request: RequestFile, tasks: Sequence[Task]
    ) -> None:
        super().__init__(folder, subfolder, tasks)
        self.subfolder, self.request = subfolder, request

    def supply(self, store: ShardStore) -> None:
        """Store the sample set again if any of it is missing, as after Redis was wiped."""
        digest = self.request.settings.sample_set_sha256
        self.folder.sample_sets.supply(digest, store, old=self.subfolder.old_samples_path)

    def clear_away(self, store: ShardStore) -> None:
        """Delete what no sensitivity run of this folder needs any more, once this one is complete."""
        run = self.folder.require_run()
        needed: set[str] = set()
        for subfolder, request in self.folder.readable_requests():
            wanted = [*sketch_tasks(request, run), *exact_tasks(request, run)]
            known = subfolder.records.read()
            if not all(task.id in known for task in wanted):
                needed.update(self._blobs(subfolder, request))
        done = [blob for blob in self._blobs(self.subfolder, self.request) if blob not in needed]
        missing = set(store.missing_blobs(done))
        # The set itself first: who finds it finds its parts.
        for blob in reversed(done):
            if blob not in missing:
                store.discard_blob(blob)

    def _blobs(self, subfolder: SensitivityFolder, request: RequestFile) -> tuple[str, ...]:
        digest = request.settings.sample_set_sha256
        try:
            return self.folder.sample_sets.blobs(digest, old=subfolder.old_samples_path)
        except InputError:
            # It is lost, which is told when it is needed.
            return ()
