"""Sample sets on a worker's machine. They are fetched once, and kept by their sha256."""

from pathlib import Path

from shared.errors import ShardCorruptError
from shared.files import write_atomically
from shared.layout.sample_index import digest_of_bytes
from shared.layout.sample_parts import read_sample_set
from shared.layout.sample_set import SampleSet
from shared.runs import SensitivitySettings
from shared.stores.store import ShardStore


def fetch_samples(
    sensitivity: SensitivitySettings, store: ShardStore, cache_dir: Path, calib_dir: Path | None
) -> SampleSet:
    """Return a sensitivity run's sample set: from `calib_dir` if it is there, else the cache, else the store.

    Raises:
        StoreError: a part of it is nowhere.
        ShardCorruptError: what the store has is not it.
    """

    def blob(digest: str) -> bytes:
        cached = cache_dir / "samples" / f"{digest}.npz"
        places = [cached]
        if calib_dir:
            old = calib_dir / "sensitivity" / sensitivity.id / "samples.npz"
            places = [calib_dir / "sample_sets" / f"{digest}.blob", old, cached]
        for place in places:
            if place.is_file() and digest_of_bytes(data := place.read_bytes()) == digest:
                return data
        data = store.blob(digest)
        if digest_of_bytes(data) != digest:
            raise ShardCorruptError(f"sample set {digest[:12]} from {store.label} is another one")
        write_atomically(cached, data)
        return data

    return read_sample_set(sensitivity.sample_set_sha256, blob)
