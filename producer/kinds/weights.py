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
        self._check_table(weights)
        super().keep(record, shard)

    def _check_table(self, weights: WeightsShard) -> None:
        """Check what the model card says, too; plans count bytes by it."""
        card = self.folder.read_model()
        if (weights.squared_error < 0).any() or (weights.squared_norm < 0).any():
            raise ShardCorruptError("negative weight errors")
        for row, layer in enumerate(card.layers if card else ()):
            for column, choice in enumerate(self.request.candidates):
                fits = layer.unmeasurable(choice.group_size) is None
                stored = choice.stored_bytes(layer.shape) if fits else 0
                told = bool(weights.measurable[row, column]), int(weights.stored_bytes[row, column])
                if told != (fits, stored):
                    raise ShardCorruptError(f"{layer.path} at {choice.label} does not take {told[1]} bytes")
