"""The sample files of an image, written out of its shard."""

from collections.abc import Sequence

from producer.folder.image_files import ImageFiles
from shared.files import write_atomically
from shared.kinds.calibration import CalibrationShard, CalibrationTask
from shared.layout import npz
from shared.layout.conditioning import to_members
from shared.layout.npz import Array


def write_samples(
    files: ImageFiles, task: CalibrationTask, shard: CalibrationShard, steps: Sequence[int]
) -> int:
    """Write the samples of some steps; return their bytes. Equal shards give equal files."""
    size = 0
    for step, path in zip(steps, files.sample_paths(task, steps), strict=True):
        data = npz.pack(_sample(shard, step))
        write_atomically(path, data)
        size += len(data)
    return size


def delete_samples(files: ImageFiles, task: CalibrationTask, steps: Sequence[int]) -> tuple[int, int]:
    """Delete the samples of some steps; return how many there were, and their bytes."""
    count = size = 0
    for path in files.sample_paths(task, steps):
        try:
            size += path.stat().st_size
        except FileNotFoundError:
            continue
        path.unlink()
        count += 1
    return count, size


def _sample(shard: CalibrationShard, step: int) -> dict[str, Array]:
    import numpy as np

    return {
        "x": shard.x[step : step + 1],
        "timestep": np.asarray(shard.timestep[step], dtype=np.float32),
        "sigma": np.asarray(shard.sigma[step], dtype=np.float32),
        **to_members(shard.conditioning),
        "step_index": np.asarray(step, dtype=np.int64),
    }
