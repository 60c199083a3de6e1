"""cancelled.json: the tasks that nobody wants until they are asked for again."""

from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from producer.folder.json_file import JsonFile


class CancelledFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `producer cancel` has cancelled."""

    tasks: tuple[str, ...]
    """Their ids, sorted."""


class CancelledTasks:
    """Reads and writes the file. Whoever writes holds the folder's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = JsonFile(path, CancelledFile)
        self._known: tuple[CancelledFile, frozenset[str]] | None = None

    def read(self) -> frozenset[str]:
        """Return the ids of all cancelled tasks.

        Raises:
            InputError: the file is damaged, or of a newer revision.
        """
        content = self._file.read()
        if content is None:
            return frozenset()
        if self._known is None or self._known[0] is not content:
            self._known = content, frozenset(content.tasks)
        return self._known[1]

    def add(self, task_ids: Iterable[str]) -> None:
        """Note that tasks are cancelled."""
        self._write(self.read().union(task_ids))

    def remove(self, task_ids: Iterable[str]) -> None:
        """Note that tasks are wanted again."""
        self._write(self.read().difference(task_ids))

    def _write(self, task_ids: frozenset[str]) -> None:
        if task_ids == self.read():
            return
        if task_ids:
            self._file.write(CancelledFile(tasks=tuple(sorted(task_ids))))
        else:
            self.path.unlink()
