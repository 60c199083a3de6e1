"""Where the files of a run's images are."""

from collections.abc import Sequence
from pathlib import Path

from shared.kinds.calibration import CalibrationTask


class ImageFiles:
    """Paths of samples, shards, seals and previews below a calibration folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.samples_dir = root / "samples"
        self.shards_dir = root / "shards"
        self.seals_dir = root / "records"

    def sample_name(self, image_index: int, step_index: int) -> str:
        """Return a sample's path relative to the root. Sorted names are in the layout's order."""
        return f"samples/image-{image_index:05d}-step-{step_index:03d}.npz"

    def sample_paths(self, task: CalibrationTask, steps: Sequence[int] | None = None) -> list[Path]:
        """Return the paths of an image's samples at some steps, or at all, in their order."""
        wanted = range(task.run.num_steps) if steps is None else steps
        return [self.root / self.sample_name(task.image_index, step) for step in wanted]

    def shard_path(self, task_id: str) -> Path:
        """Return the path of an image's shard, if it is kept."""
        return self.shards_dir / f"{task_id}.npz"

    def preview_path(self, image_index: int) -> Path:
        """Return the path of a decoded image."""
        return self.root / "previews" / f"image-{image_index:05d}.png"

    def seal_path(self, task_id: str) -> Path:
        """Return the path of an image's seal; see producer.folder.sample_seals."""
        return self.seals_dir / f"{task_id}.seal"
