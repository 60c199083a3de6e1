"""Weights: how far each candidate is from each layer's weight; one task."""

from collections.abc import Sequence

from producer.folder.calib_folder import CalibFolder
from producer.folder.kept_folder import KeptFolder, WeightsRequest
from producer.folder.run_file import RunFile
from producer.kinds.kept import KeptPart, check_layers, parts_or_troubles
from producer.kinds.part import Part
from shared.errors import InputError, ShardCorruptError
from shared.kinds.weights import WeightsShard, WeightsTask
from shared.stores.records import Record


def find_parts(folder: CalibFolder) -> Sequence[Part]:
    """Return one part per list of candidates."""
    return parts_or_troubles(folder, "weights", folder.weights.all(), WeightsPart)


def weights_task(request: WeightsRequest, run: RunFile) -> WeightsTask:
    """Return the one task of a request."""
    return WeightsTask(run=run.settings, store_id=run.store_id, candidates=request.candidates)


def read_weights(folder: CalibFolder, weights_id: str) -> WeightsShard:
    """Return the collected weight errors.

    Raises:
        InputError: they are not collected.
    """
    subfolder = folder.weights.open(weights_id)
    task = weights_task(subfolder.require_request(), folder.require_run())
    if task.id not in subfolder.records.read() or not subfolder.shard_path(task.id).is_file():
        raise InputError(
            f"{task.label} ({weights_id}) are not collected yet; run `producer collect --wait`, with a worker"
        )
    return WeightsShard.from_bytes(subfolder.shard_path(task.id).read_bytes())


class WeightsPart(KeptPart):
    """The weight errors of one list of candidates."""

    def __init__(self, folder: CalibFolder, subfolder: KeptFolder[WeightsRequest]) -> None:
        self.request = subfolder.require_request()
        super().__init__(folder, subfolder, [weights_task(self.request, folder.require_run())])
        self._id = subfolder.root.name

    @property
    def title(self) -> str:
        return f"weights {self._id}"

    def keep(self, record: Record, shard: bytes) -> None:
        weights = WeightsShard.from_bytes(shard)
        asked = [(choice.bits, choice.group_size) for choice in self.request.candidates]
        if list(zip(weights.bits.tolist(), weights.group_size.tolist(), strict=True)) != asked:
            raise ShardCorruptError("weight errors of other candidates than were asked for")
        check_layers(self.folder, len(weights.squared_norm))
        super().keep(record, shard)
