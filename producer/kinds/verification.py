"""Verification: the prompts that all variants draw, more of them from look to look, and the verdict."""

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from producer.folder.calib_folder import CalibFolder
from producer.folder.kept_folder import KeptFolder
from producer.folder.verification_request import VARIANTS, VerificationRequest
from producer.kinds.kept import KeptPart
from shared.errors import ShardCorruptError
from shared.kinds.verification import VerificationShard, VerificationTask
from shared.stores.records import Record
from shared.stores.store import ShardStore

if TYPE_CHECKING:
    from producer.proof.measured import Measured

PNG = b"\x89PNG"


def find_parts(folder: CalibFolder) -> list["VerificationPart"]:
    """Return one part per verification that wants a prompt; proofs wait until their plan is chosen."""
    parts = [VerificationPart(folder, subfolder) for subfolder in folder.verifications.all()]
    return [part for part in parts if part.request.wanted]


class VerificationPart(KeptPart):
    """One verification."""

    def __init__(self, folder: CalibFolder, subfolder: KeptFolder[VerificationRequest]) -> None:
        self.request, self.subfolder = subfolder.require_request(), subfolder
        super().__init__(folder, subfolder, self.request.tasks())

    @property
    def title(self) -> str:
        what = "verification" if self.request.purpose == "proof" else "choice of a plan"
        return f"{what} {self.request.settings.id}"

    def keep(self, record: Record, shard: bytes) -> None:
        assert isinstance(record.task, VerificationTask)
        drawn = VerificationShard.from_bytes(shard)
        variants, steps = drawn.velocity_error.shape
        if (variants, steps) != (len(self.request.names), self.request.settings.num_steps):
            raise ShardCorruptError(
                f"{variants} variants and {steps} steps, not {len(self.request.names)} and "
                f"{self.request.settings.num_steps}"
            )
        if int(drawn.image_index) != record.task.image_index:
            raise ShardCorruptError(f"it is of another image, {drawn.image_index}")
        if any(picture and not picture.startswith(PNG) for picture in drawn.pictures()):
            raise ShardCorruptError("one of its pictures is no PNG")
        super().keep(record, shard)

    def supply(self, store: ShardStore) -> None:
        """Store the variants again if they are missing, as after Redis was wiped."""
        digest = self.request.settings.variants_sha256
        if not store.has_blob(digest):
            store.put_blob(digest, (self.subfolder.root / VARIANTS).read_bytes())

    def clear_away(self, store: ShardStore) -> None:
        """Delete the variants, unless the same are still to be drawn with other steps or another size."""
        digest = self.request.settings.variants_sha256
        others = [part for part in find_parts(self.folder) if part.request.settings.variants_sha256 == digest]
        if all(len(part.collected().records) == len(part.tasks()) for part in others):
            store.discard_blob(digest)

    def ask_for_more(self, records: dict[str, Record]) -> bool:
        """Ask for the prompts of the next look, or for the proof of the plan that was chosen."""
        from producer.proof.looks import next_look
        from producer.proof.verdict import compare, is_decided

        if len(records) < len(self._tasks):
            return False
        if self.request.purpose == "choosing":
            return self._ask_for_proof(records)
        most = len(self.request.prompts)
        if self.request.wanted == most:
            return False
        if is_decided(compare(self._measured(records), self.request.names, most)):
            return False
        wanted = next_look(self.request.wanted, most)
        self.subfolder.write_request(replace(self.request, wanted=wanted))
        return True

    def _ask_for_proof(self, records: dict[str, Record]) -> bool:
        from producer.proof.looks import next_look

        best = self._measured(records).best_of(range(1, len(self.request.names)))
        proof = self.folder.verifications.open(self.request.proofs[best - 1])
        request = proof.require_request()
        if request.wanted:
            return False
        proof.write_request(replace(request, wanted=next_look(0, len(request.prompts))))
        return True

    def _measured(self, records: dict[str, Record]) -> "Measured":
        from producer.proof.measured import measured

        return measured(self._shards(records))

    def _shards(self, records: dict[str, Record]) -> list[VerificationShard]:
        paths = [self.subfolder.shard_path(task.id) for task in self._tasks if task.id in records]
        return [VerificationShard.from_bytes(path.read_bytes()) for path in paths if path.is_file()]

    def write_results(self, reasons: dict[str, str]) -> Path | None:
        """Write verdict and winner of what is collected."""
        from producer.proof.write import write_verdict

        shards = self._shards(self.subfolder.records.read())
        if not shards:
            return None
        return write_verdict(self.folder, self.subfolder, shards, missing=len(self._tasks) - len(shards))

    def conclusion(self) -> str | None:
        """Return the verdict in one line."""
        from producer.proof.write import conclusion

        return conclusion(self.subfolder)
