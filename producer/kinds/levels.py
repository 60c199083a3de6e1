"""Levels: one task an image."""

from collections.abc import Sequence
from pathlib import Path

from producer.folder.calib_folder import CalibFolder
from producer.folder.kept_folder import KeptFolder, LevelsRequest
from producer.folder.run_file import RunFile
from producer.kinds.kept import KeptPart, check_layers, parts_or_troubles
from producer.kinds.part import Part
from producer.kinds.weights import read_weights
from shared.errors import InputError, ShardCorruptError
from shared.files import write_atomically
from shared.kinds.levels import LevelsShard, LevelsTask
from shared.stores.records import Record


def find_parts(folder: CalibFolder) -> Sequence[Part]:
    """Return one part per request that asks for images."""
    return parts_or_troubles(folder, "levels", folder.levels.all(), LevelsPart)


def levels_tasks(request: LevelsRequest, run: RunFile) -> list[LevelsTask]:
    """Return one task per image."""
    return [
        LevelsTask(
            run=run.settings,
            store_id=run.store_id,
            levels=request.settings,
            image_index=image.image_index,
            prompt=image.prompt,
            seed=image.seed,
        )
        for image in request.prompts
    ]


def read_levels(
    folder: CalibFolder, subfolder: KeptFolder[LevelsRequest]
) -> list[tuple[LevelsTask, LevelsShard]]:
    """Return the collected levels, in the order of their images."""
    tasks = levels_tasks(subfolder.require_request(), folder.require_run())
    known = subfolder.records.read()
    there = [task for task in tasks if task.id in known and subfolder.shard_path(task.id).is_file()]
    return [(task, LevelsShard.from_bytes(subfolder.shard_path(task.id).read_bytes())) for task in there]


class LevelsPart(KeptPart):
    """The levels of one request."""

    def __init__(self, folder: CalibFolder, subfolder: KeptFolder[LevelsRequest]) -> None:
        self.request, self.subfolder = subfolder.require_request(), subfolder
        super().__init__(folder, subfolder, levels_tasks(self.request, folder.require_run()))

    @property
    def title(self) -> str:
        return f"levels {self.request.settings.id}"

    def keep(self, record: Record, shard: bytes) -> None:
        levels = LevelsShard.from_bytes(shard)
        check_layers(self.folder, len(levels.levels))
        if levels.products.shape[1] != len(self.request.settings.candidates):
            raise ShardCorruptError("levels with other candidates than were asked for")
        if (levels.levels < 0).any() or levels.squared_reference <= 0:
            raise ShardCorruptError("negative levels, or a final latent of zeros")
        super().keep(record, shard)

    def write_results(self, reasons: dict[str, str]) -> Path | None:
        """Write levels.csv, once the weight errors and an image are there."""
        from producer.plan.scores import scores_csv, scores_of

        try:
            weights = read_weights(self.folder, self.request.weights_id)
        except InputError:
            return None
        card, done = self.folder.read_model(), read_levels(self.folder, self.subfolder)
        if card is None or not done:
            return None
        scores = scores_of([shard for _, shard in done], self.request.settings.candidates, weights)
        path = self.subfolder.root / "levels.csv"
        write_atomically(path, scores_csv(scores, card).encode())
        return path
