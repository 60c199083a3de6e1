"""What sensitivity and sketch have in common: both measure on a sample set, in sensitivity/<id>."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from producer.folder.calib_folder import CalibFolder, SensitivityFolder
from producer.folder.request_file import RequestFile
from producer.folder.tasks import exact_tasks, sketch_tasks
from producer.kinds.kept import KeptPart
from shared.errors import InputError
from shared.kinds.kind import Task
from shared.stores.store import ShardStore


def readable_requests(folder: CalibFolder) -> Iterator[tuple[SensitivityFolder, RequestFile]]:
    """Yield all requests that can be read. The others are told of by `producer.kinds.sensitivity`."""
    for subfolder in folder.sensitivities():
        with suppress(InputError):
            yield subfolder, subfolder.require_request()


class SampledPart(KeptPart):
    """A part whose workers need a sample set."""

    def __init__(
        self, folder: CalibFolder, subfolder: SensitivityFolder, request: RequestFile, tasks: Sequence[Task]
    ) -> None:
        super().__init__(folder, subfolder, tasks)
        self.subfolder, self.request = subfolder, request

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
