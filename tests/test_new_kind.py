"""A new kind of task is three files and one name, shown by adding one to a copy of the packages."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.copies import copy_packages, replace_in
from tests.fleet import Fleet

SHARED = '''
"""How many layers the model of a run has."""

from dataclasses import dataclass
from typing import ClassVar

from shared.kinds.kind import Kind, Task
from shared.layout.npz import Array
from shared.packed_arrays import INTEGERS, PackedArrays


class CountTask(Task, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="count"):
    """One run."""

    @property
    def id(self) -> str:
        return f"cnt-{self.run.id}-0"

    @property
    def namespace(self) -> str:
        return f"count-{self.run.id}"

    @property
    def label(self) -> str:
        return "the number of layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class CountShard(PackedArrays):
    layers: Array

    _layout: ClassVar[dict[str, tuple[str, int]]] = {"layers": (INTEGERS, 0)}


KIND = Kind(name="count", task=CountTask, shard=CountShard)
'''

WORKER = '''
"""Count the layers."""

import numpy as np

from shared.kinds.count import CountShard, CountTask
from worker.kinds.lent import Lent


def run(task: CountTask, lent: Lent) -> bytes:
    lent.check("counting")
    return CountShard(layers=np.array(len(lent.family.layers))).to_bytes()
'''

PRODUCER = '''
"""One count a run; what is kept is the number."""

from collections.abc import Sequence
from pathlib import Path

from producer.folder.calib_folder import CalibFolder
from producer.folder.record_folder import RecordFolder
from producer.kinds.part import Collected, Part
from shared.files import write_atomically
from shared.kinds.count import CountShard, CountTask
from shared.stores.records import Record


def find_parts(folder: CalibFolder) -> list[Part]:
    return [CountPart(folder)]


class CountPart(Part):
    def __init__(self, folder: CalibFolder) -> None:
        self._run = folder.require_run()
        self._records = RecordFolder(folder.root / "count")
        self._path = folder.root / "count.txt"

    @property
    def title(self) -> str:
        return "count"

    def tasks(self) -> Sequence[CountTask]:
        return [CountTask(run=self._run.settings, store_id=self._run.store_id)]

    def collected(self, *, closely: bool = False) -> Collected:
        return Collected(records=self._records.read())

    def drop(self, task_id: str) -> None:
        self._records.drop(task_id)

    def keep(self, record: Record, shard: bytes) -> None:
        write_atomically(self._path, f"{CountShard.from_bytes(shard).layers}".encode())
        self._records.write(record)

    def write_results(self, reasons: dict[str, str]) -> Path | None:
        return self._path if self._path.is_file() else None
'''


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """A copy of the packages with one kind more."""
    root = copy_packages(tmp_path / "copy")
    for package, source in (("shared", SHARED), ("worker", WORKER), ("producer", PRODUCER)):
        (root / package / "kinds" / "count.py").write_text(source)
    replace_in(root / "shared/kinds/registry.py", "NAMES = (", 'NAMES = ("count", ')
    return root


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str, extended: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path / "user", redis_url, tmp_path / "cache", root=extended)
    yield fleet
    fleet.close()


@pytest.mark.slow
def test_three_files_and_one_name_make_a_kind(fleet: Fleet) -> None:
    fleet.enqueue(1)
    output = fleet.producer("collect", code=3)
    assert "count: 0 of 1, 1 missing (1 queued or running)" in output
    fleet.work()
    output = fleet.producer("collect")
    assert "count: 1 of 1" in output
    assert int((fleet.calib / "count.txt").read_text()) > 40
    assert "count" in fleet.producer("status")
