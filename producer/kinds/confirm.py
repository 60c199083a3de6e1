"""Confirm: one task an image, for a few variants that travel as a blob."""

from collections.abc import Sequence
from pathlib import Path

from producer.folder.calib_folder import CalibFolder
from producer.folder.kept_folder import ConfirmRequest, KeptFolder
from producer.folder.run_file import RunFile
from producer.kinds.kept import KeptPart, check_layers, parts_or_troubles
from producer.kinds.part import Part
from shared.errors import ShardCorruptError
from shared.kinds.confirm import ConfirmShard, ConfirmTask
from shared.stores.records import Record
from shared.stores.store import ShardStore

VARIANTS = "variants.json"


def find_parts(folder: CalibFolder) -> Sequence[Part]:
    """Return one part per list of variants."""
    return parts_or_troubles(folder, "confirm", folder.confirms.all(), ConfirmPart)


def confirm_tasks(request: ConfirmRequest, run: RunFile) -> list[ConfirmTask]:
    """Return one task per image."""
    return [
        ConfirmTask(
            run=run.settings,
            store_id=run.store_id,
            confirm=request.settings,
            image_index=image.image_index,
            prompt=image.prompt,
            seed=image.seed,
        )
        for image in request.prompts
    ]


class ConfirmPart(KeptPart):
    """The products of a few variants."""

    def __init__(self, folder: CalibFolder, subfolder: KeptFolder[ConfirmRequest]) -> None:
        self.request, self.subfolder = subfolder.require_request(), subfolder
        super().__init__(folder, subfolder, confirm_tasks(self.request, folder.require_run()))

    @property
    def title(self) -> str:
        return f"confirm {self.request.settings.id}"

    def keep(self, record: Record, shard: bytes) -> None:
        confirmed = ConfirmShard.from_bytes(shard)
        variants, layers = confirmed.products.shape
        check_layers(self.folder, layers)
        if variants != len(self.request.names):
            raise ShardCorruptError(f"products of {variants} variants, not {len(self.request.names)}")
        if confirmed.squared_reference <= 0:
            raise ShardCorruptError("a final latent of zeros")
        super().keep(record, shard)

    def supply(self, store: ShardStore) -> None:
        """Store the variants again if they are missing, as after Redis was wiped."""
        digest = self.request.settings.variants_sha256
        if not store.has_blob(digest):
            store.put_blob(digest, (self.subfolder.root / VARIANTS).read_bytes())

    def clear_away(self, store: ShardStore) -> None:
        """Delete the variants."""
        store.discard_blob(self.request.settings.variants_sha256)

    def write_results(self, reasons: dict[str, str]) -> Path | None:
        """Write the predictions of all variants, here and beside each plan."""
        from producer.plan.prediction import predict
        from producer.plan.write import write_predictions

        known = self.subfolder.records.read()
        paths = [self.subfolder.shard_path(task.id) for task in self._tasks if task.id in known]
        shards = [ConfirmShard.from_bytes(path.read_bytes()) for path in paths if path.is_file()]
        if not shards:
            return None
        predictions = predict(shards, self.request.names)
        return write_predictions(self.folder, self.subfolder.root, self.request.plans, predictions)
