"""Sample sets on a worker's machine: fetched once, kept by their sha256."""

import hashlib
from pathlib import Path

from shared.errors import ShardCorruptError
from shared.files import write_atomically
from shared.layout.sample_set import SampleSet
from shared.runs import SensitivitySettings
from shared.stores.store import ShardStore


def fetch_samples(
    sensitivity: SensitivitySettings, store: ShardStore, cache_dir: Path, calib_dir: Path | None
) -> SampleSet:
    """Return a sensitivity run's sample set: from `calib_dir` if it is there, else the cache, else the store.

    Raises:
        StoreError: it is nowhere.
        ShardCorruptError: what the store has is not it.
    """
    digest = sensitivity.sample_set_sha256
    cached = cache_dir / "samples" / f"{digest}.npz"
    places = [calib_dir / "sensitivity" / sensitivity.id / "samples.npz"] if calib_dir else []
    for place in [*places, cached]:
        if place.is_file() and hashlib.sha256(data := place.read_bytes()).hexdigest() == digest:
            return SampleSet.from_bytes(data)
    data = store.blob(digest)
    if hashlib.sha256(data).hexdigest() != digest:
        raise ShardCorruptError(f"sample set {digest[:12]} from {store.label} is another one")
    write_atomically(cached, data)
    return SampleSet.from_bytes(data)
