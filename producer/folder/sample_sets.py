"""The sample sets of a calibration folder, as blobs for the workers: files named by their sha256.

Sensitivity runs on the same samples share them. Blobs are written once and never changed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from producer.folder.json_file import stamp_of
from shared.errors import InputError, ShardCorruptError
from shared.files import write_atomically
from shared.layout.sample_index import SampleIndex, decode_index, digest_of_bytes
from shared.stores.store import ShardStore

if TYPE_CHECKING:
    from shared.layout.sample_set import SampleSet


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSet:
    """A sample set that was written in parts."""

    digest: str
    samples: int
    size: int
    """Bytes of all its blobs."""


class SampleSets:
    """Reads and writes the blobs."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, tuple[str, ...]] = {}
        """By digest of a set, the digests of its blobs."""

    def write(self, parts: "Iterable[SampleSet]", *, dry_run: bool = False) -> WrittenSet:
        """Write a sample set, one part after the other, so that only one is in memory at a time.

        With `dry_run` nothing is written: what would be is returned.
        """
        keep = digest_of_bytes if dry_run else self._write
        digests, samples, size = [], 0, 0
        for part in parts:
            data = part.to_bytes()
            digests.append(keep(data))
            samples += len(part)
            size += len(data)
        index = SampleIndex(parts=tuple(digests)).to_bytes()
        return WrittenSet(digest=keep(index), samples=samples, size=size + len(index))

    def blobs(self, digest: str, *, old: Path) -> tuple[str, ...]:
        """Return the digests of all blobs of a set, that of the set itself last.

        Args:
            digest: names the set.
            old: where an older revision has written the set as a whole.

        Raises:
            InputError: the set is lost or damaged.
        """
        if digest not in self._known:
            index = None
            if self._path(digest).exists() or not old.exists():
                try:
                    index = decode_index(self.read(digest, old=old))
                except ShardCorruptError as error:
                    raise InputError(f"{self._path(digest)}: {error}; {_CURE}") from None
            self._known[digest] = (*(index.parts if index else ()), digest)
        return self._known[digest]

    def read(self, digest: str, *, old: Path) -> bytes:
        """Return a blob after checking its sha256; see `blobs` for `old`.

        Raises:
            InputError: it is lost or damaged.
        """
        for path in (self._path(digest), old):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            if digest_of_bytes(data) == digest:
                return data
        raise InputError(f"{self._path(digest)} is lost or altered; {_CURE}")

    def supply(self, digest: str, store: ShardStore, *, old: Path) -> None:
        """Put those blobs of a set into the store that are not there, that of the set itself last.

        Raises:
            InputError: a blob is lost or damaged.
            StoreFullError: there is no room yet.
        """
        for blob in store.missing_blobs(self.blobs(digest, old=old)):
            store.put_blob(blob, self.read(blob, old=old))

    def _write(self, data: bytes) -> str:
        digest = digest_of_bytes(data)
        path = self._path(digest)
        stamp = stamp_of(path)
        if stamp is None or digest_of_bytes(path.read_bytes()) != digest:
            write_atomically(path, data)
        return digest

    def _path(self, digest: str) -> Path:
        return self._root / f"{digest}.blob"


_CURE = "give the same `producer enqueue-sensitivity` again, which writes it anew"
