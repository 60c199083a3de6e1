"""Folders in which tasks save their progress, so that a task that is started again goes on from there."""

import shutil
import time
from pathlib import Path

KEPT_SECONDS = 7 * 24 * 3600.0
"""Seconds after which unused progress is removed: its task was finished elsewhere."""


class TaskFolders:
    """Those of one machine, which its worker processes share."""

    def __init__(self, cache_dir: Path) -> None:
        self._root = cache_dir / "tasks"
        self._remove_old()

    def of(self, task_id: str, fingerprint: str) -> Path:
        """Of one task on one model, which may not exist yet; `fingerprint` is that of the model."""
        return self._root / f"{task_id}-{fingerprint[:12]}"

    def remove(self, task_id: str, fingerprint: str) -> None:
        """The task is done, or never will be."""
        shutil.rmtree(self.of(task_id, fingerprint), ignore_errors=True)

    def _remove_old(self) -> None:
        for folder in self._root.iterdir() if self._root.is_dir() else ():
            try:
                latest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            except OSError:
                # Another process of this machine removed it meanwhile.
                continue
            if time.time() - latest > KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
