"""Where the files of a run's images are."""

from pathlib import Path

from shared.kinds.calibration import CalibrationTask


class ImageFiles:
    """Paths of samples, seals and previews below a calibration folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.samples_dir = root / "samples"

    def sample_name(self, image_index: int, step_index: int) -> str:
        """Return a sample's path relative to the root. Sorted names are in the layout's order."""
        return f"samples/image-{image_index:05d}-step-{step_index:03d}.npz"

    def sample_paths(self, task: CalibrationTask) -> list[Path]:
        """Return the paths of an image's samples, in the order of its steps."""
        return [self.root / self.sample_name(task.image_index, step) for step in range(task.run.num_steps)]

    def preview_path(self, image_index: int) -> Path:
        """Return the path of a decoded image."""
        return self.root / "previews" / f"image-{image_index:05d}.png"

    def seal_path(self, task_id: str) -> Path:
        """Return the path of an image's seal; see producer.folder.sample_seals."""
        return self.root / "records" / f"{task_id}.seal"
