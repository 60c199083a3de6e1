"""The records of collected tasks, one small JSON file each."""

import os
from collections.abc import Iterator
from heapq import nlargest
from pathlib import Path

from producer.folder.json_file import Stamp, newer_revision
from shared.errors import InputError, ShardCorruptError
from shared.files import write_atomically
from shared.stores.records import Record, decode_record, encode_record


class RecordFolder:
    """Reads and writes records. A file is read again only if its time or size has changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, tuple[Stamp, Record | None]] = {}

    def read(self) -> dict[str, Record]:
        """Return all records by task id, in the order of their ids. Unreadable records are left out.

        Raises:
            InputError: a newer revision wrote one. It must not be taken for damaged, and its task done again.
        """
        found = {}
        for name, stamp in sorted(self._files()):
            known = self._known.get(name)
            if known is None or known[0] != stamp:
                known = stamp, self._decoded(name)
            found[name] = known
        self._known = found
        return {record.id: record for _, record in found.values() if record is not None}

    def ids(self) -> set[str]:
        """Return the ids of the tasks that have a record, by the names of the files: nothing is read."""
        if not self.root.is_dir():
            return set()
        with os.scandir(self.root) as entries:
            names = [entry.name for entry in entries]
        return {name[: -len(".json")] for name in names if name.endswith(".json") and name[0] != "."}

    def latest(self, count: int, prefix: str) -> list[Record]:
        """Return the records written last, at most so many, of tasks whose ids begin with `prefix`."""
        files = [(stamp.mtime_ns, name) for name, stamp in self._files() if name.startswith(prefix)]
        newest = nlargest(count, files)
        return [record for _, name in newest if (record := self._decoded(name)) is not None]

    def write(self, record: Record) -> None:
        """Write a record. From now on its task is done."""
        write_atomically(self.root / f"{record.id}.json", encode_record(record))

    def drop(self, task_id: str) -> None:
        """Delete a task's record. Does nothing if there is none."""
        (self.root / f"{task_id}.json").unlink(missing_ok=True)

    def _files(self) -> Iterator[tuple[str, Stamp]]:
        if not self.root.is_dir():
            return
        with os.scandir(self.root) as entries:
            for entry in entries:
                if entry.name.endswith(".json") and not entry.name.startswith("."):
                    try:
                        status = entry.stat()
                    except FileNotFoundError:
                        continue
                    yield entry.name, Stamp(status.st_mtime_ns, status.st_size)

    def _decoded(self, name: str) -> Record | None:
        try:
            record = decode_record((self.root / name).read_bytes())
        except (ShardCorruptError, OSError) as error:
            if "unknown field" in str(error):
                raise InputError(newer_revision(self.root / name, error)) from None
            return None
        return record if f"{record.id}.json" == name else None
