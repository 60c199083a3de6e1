"""The ledger: what a pass reads, and what a look at a folder says."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from redis import Redis

from producer.cli import main
from producer.collect import Collector
from producer.enqueue import SensitivityOptions, enqueue_sensitivity
from producer.fleet import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import RunFile
from producer.folder.tasks import calibration_tasks, exact_tasks
from producer.ledger import Ledger
from shared.kinds.kind import Task
from shared.stores.relay_store import RelayStore
from tests.calibration_shards import calibration_shard
from tests.tasks import SETTINGS, record_of
from tests.test_collect_sensitivity import exact_shard

RUN = RunFile(settings=SETTINGS, prompts=("first", "second"), store_id="relay", store=None)

_opened: list[str] | None = None


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(args[0]))


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Names of all files that are opened within."""
    global _opened
    if not getattr(sys, "_ledger_hook", False):
        # An audit hook stays for good, so there is only ever one.
        sys.addaudithook(_hear)
        sys._ledger_hook = True  # type: ignore[attr-defined]
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


@pytest.fixture
def collector(tmp_path: Path, redis: Redis) -> Collector:
    """Of a folder with two images and one measured pair of two, all collected."""
    folder, store = CalibFolder(tmp_path / "calib"), RelayStore(redis)
    collector = Collector(Ledger(folder, redis, store), complain=pytest.fail)
    folder.write_run(RUN)

    def leave(task: Task, shard: bytes) -> None:
        assert store.put(record_of(task, shard), shard) == "stored"

    for task in calibration_tasks(RUN):
        leave(task, calibration_shard(task.image_index).to_bytes())
    collector.collect()
    options = SensitivityOptions(bits=[4, 8], group_size=64, max_images=2, step_stride=1, layers="*")
    fleet = Fleet(connection=redis, store=store, store_url=None)
    request, _ = enqueue_sensitivity(folder, options, fleet)
    pair = exact_tasks(request, RUN)[0]
    leave(pair, exact_shard(pair, images=2).to_bytes())
    collector.collect()
    return collector


def test_an_idle_pass_reads_nothing(collector: Collector) -> None:
    root = str(collector.ledger.folder.root)
    collector.collect()
    with opened_files() as opened:
        states = collector.collect()
    # But for the folder's lock, which a pass holds.
    assert [name for name in opened if name.startswith(root) and "/.bitfleet/" not in name] == []
    assert [(state.title.split()[0], state.done, state.total) for state in states] == [
        ("calibration", 2, 2),
        ("sensitivity", 1, 2),
    ]


def test_a_look_says_the_same_and_reads_no_shard(collector: Collector) -> None:
    folder = CalibFolder(collector.ledger.folder.root)
    ledger = Ledger(folder, collector.ledger._connection, collector.ledger.store)
    with opened_files() as opened:
        states = ledger.survey()
    assert not any(name.endswith(".npz") for name in opened)
    assert states == collector.collect()
    assert states[1].reasons == {exact_tasks_of(folder)[1].id: "queued"}


def exact_tasks_of(folder: CalibFolder) -> list[Any]:
    (place,) = folder.sensitivities()
    return exact_tasks(place.require_request(), RUN)


def test_a_changed_shard_is_read_again(collector: Collector) -> None:
    folder = collector.ledger.folder
    (place,) = folder.sensitivities()
    path = place.shard_path(exact_tasks_of(folder)[0].id)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    problems: list[str] = []
    collector.complain = problems.append
    assert collector.collect()[1].done == 0
    assert "missing or altered" in problems[0]


def test_a_report_from_the_folder_alone(collector: Collector) -> None:
    folder = collector.ledger.folder
    (place,) = folder.sensitivities()
    done = CliRunner().invoke(main, ["report", "--calib-dir", str(folder.root)])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == f"report: {folder.report_path}"
    assert place.results_path.is_file()
    empty = CliRunner().invoke(main, ["report", "--calib-dir", str(folder.root.parent)])
    assert empty.exit_code == 2
    assert "holds no run" in empty.output
