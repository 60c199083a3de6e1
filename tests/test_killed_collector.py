"""A collector killed with SIGKILL at any point, or out of disk: run again, nothing is lost or doubled.

It is killed at every fifth point here, at every single one with BITFLEET_CHAOS=full (`make chaos`).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from redis import Redis

import shared.files
from producer.cli import main
from producer.collect import Collector
from producer.folder.calib_folder import CalibFolder
from producer.folder.request_file import RequestFile
from producer.folder.run_file import RunFile
from producer.folder.sample_steps import written_steps
from producer.folder.tasks import calibration_tasks, exact_tasks
from producer.ledger import Ledger
from shared.choices import SampleFiles
from shared.jobs.connection import connect
from shared.kinds.calibration import CalibrationTask
from shared.kinds.kind import Task
from shared.layout.reader import read_manifest, read_samples
from shared.runs import SensitivitySettings
from shared.stores.folder_store import FolderStore
from shared.stores.relay_store import RelayStore
from shared.stores.store import ShardStore
from tests.calibration_shards import CARD, calibration_shard
from tests.tasks import SETTINGS, record_of
from tests.test_folder_store import small_disk

STRIDE = 1 if os.environ.get("BITFLEET_CHAOS") == "full" else 5

RUN = msgspec.structs.replace(SETTINGS, num_steps=2)
SENSITIVITY = SensitivitySettings(run_id=RUN.id, sample_set_sha256="b" * 64, group_size=64)
REQUEST = RequestFile(
    settings=SENSITIVITY,
    layers=(CARD.layers[0].path,),
    bits=(4,),
    samples=2,
    max_images=2,
    step_stride=1,
)


def run_file(store: ShardStore, samples: SampleFiles = "all") -> RunFile:
    prompts = ("a circle", "a square")
    return RunFile(settings=RUN, prompts=prompts, store_id=store.id, store=None, samples=samples)


def prepare(
    root: Path, store: ShardStore, shards: dict[str, bytes], samples: SampleFiles = "all"
) -> CalibFolder:
    """A folder that asks for two images and one (layer, bits), all finished in the store."""
    folder = CalibFolder(root)
    run = run_file(store, samples)
    folder.write_run(run)
    place = folder.sensitivity(SENSITIVITY.id)
    place.write_request(REQUEST)
    for task in tasks_of(run):
        kind = task.id.partition("-")[0] + task.label
        store.put(record_of(task, shards[kind]), shards[kind])
    return folder


def tasks_of(run: RunFile) -> list[Task]:
    return [*calibration_tasks(run), *exact_tasks(REQUEST, run)]


@pytest.fixture(scope="module")
def shards(make_example: Any) -> dict[str, bytes]:
    example = make_example()
    pair = example.shard(example.task("final_layer.linear", 4))
    store = type("Nowhere", (), {"id": "relay"})()
    images = {
        f"cal{task.label}": calibration_shard(task.image_index, RUN.num_steps).to_bytes()
        for task in calibration_tasks(run_file(store))
    }
    return images | {f"sen{exact_tasks(REQUEST, run_file(store))[0].label}": pair.to_bytes()}


@pytest.fixture(params=["relay", "folder"])
def new_store(request: pytest.FixtureRequest, redis: Redis, tmp_path: Path) -> Callable[[], ShardStore]:
    """An empty store, and an empty Redis."""

    def make() -> ShardStore:
        redis.flushall()
        if request.param == "relay":
            return RelayStore(redis)
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        return FolderStore.open(str(tmp_path / "store"), create=True)

    return make


class Death:
    """Kills this process with SIGKILL at its n-th look: each change of a file, each call of the store."""

    def __init__(self, at: int) -> None:
        self._left = at

    def look(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def listen(self, store: ShardStore) -> None:
        """Only ever in a child process: an audit hook stays for good."""
        sys.addaudithook(self._hear)
        fdopen = os.fdopen

        def dying_fsync(descriptor: int) -> None:
            self.look()

        def dying_fdopen(descriptor: int, mode: str) -> Any:
            return HalfWriter(fdopen(descriptor, mode), self)

        os.fsync = dying_fsync
        shared.files.os.fdopen = dying_fdopen  # type: ignore[attr-defined]
        for name in ("record_ids", "record", "shard", "discard"):
            setattr(store, name, self._dying(getattr(store, name)))

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        # Before each: os.rename is a replace, too, and a temporary file is opened by mkstemp.
        if event in ("os.rename", "os.remove", "os.mkdir", "tempfile.mkstemp", "os.chmod"):
            self.look()

    def _dying(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.look()
            result = method(*args)
            self.look()
            return result

        return call


class HalfWriter:
    """A file whose write is a half, a look, and the other half."""

    def __init__(self, file: Any, death: Death) -> None:
        self._file, self._death = file, death

    def __enter__(self) -> "HalfWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._death.look()
        self._file.write(data[len(data) // 2 :])


def collect(folder: CalibFolder, store: ShardStore, redis: Redis) -> Any:
    return Collector(Ledger(folder, redis, store), complain=_fail).collect()


def _fail(problem: str) -> None:
    raise AssertionError(problem)


def collect_and_die(folder: CalibFolder, store: ShardStore, redis_url: str, at: int) -> bool:
    """Collect in a child that is killed at its `at`-th look; False when it got through."""
    if (child := os.fork()) == 0:
        code = 1
        try:
            Death(at).listen(store)
            collect(folder, store, connect(redis_url))
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def check_manifest(folder: CalibFolder) -> None:
    """It is absent or valid, what it lists is there whole, and all steps of its images can be read."""
    if not folder.manifest_path.exists():
        return
    manifest = read_manifest(folder.root)
    steps = written_steps(folder.require_run().samples, RUN.num_steps)
    names = [folder.sample_name(image, step) for image in range(manifest.n_completed) for step in steps]
    assert list(manifest.sample_files or ()) == names
    for name in names:
        np.load(folder.root / name).close()
    samples = list(read_samples(folder.root))
    assert len(samples) == manifest.n_completed * RUN.num_steps
    for sample in samples:
        shard = calibration_shard(sample.image_index, RUN.num_steps)
        np.testing.assert_array_equal(sample.x[0], shard.x[sample.step_index])


def check_records(folder: CalibFolder) -> None:
    """A record's existence means done: all that it vouches for is there."""
    run = folder.require_run()
    steps = written_steps(run.samples, RUN.num_steps)
    for record in folder.records.read().values():
        assert isinstance(record.task, CalibrationTask)
        assert all(path.is_file() for path in folder.sample_paths(record.task, steps))
        if run.samples != "all":
            record.check(folder.shard_path(record.id).read_bytes())
    place = folder.sensitivity(SENSITIVITY.id)
    for path in place.records.root.glob("*.json"):
        assert place.shard_path(path.stem).is_file()


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".tmp"
    }


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@pytest.mark.parametrize("samples", ["all", "needed"])
def test_killed_at_any_point(
    samples: SampleFiles,
    new_store: Callable[[], ShardStore],
    shards: dict[str, bytes],
    redis: Redis,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # SIGKILL loses nothing that was written; only a power cut does, and fsync takes its time.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    # One of the two steps of an image is needed.
    monkeypatch.setattr("producer.folder.sample_steps.DEFAULT_STEPS_PER_IMAGE", 1)
    store = new_store()
    folder = prepare(tmp_path / "whole", store, shards, samples)
    collect(folder, store, redis)
    whole = contents(folder.root)
    assert read_manifest(folder.root).n_completed == 2
    at, died = 1 - STRIDE, True
    while died:
        at += STRIDE
        store = new_store()
        folder = prepare(tmp_path / f"killed-{at}", store, shards, samples)
        died = collect_and_die(folder, store, redis_url, at)
        check_manifest(folder)
        check_records(folder)
        # Its lock runs out by itself, but the test need not wait for that.
        redis.delete(*redis.keys("bitfleet:reconcile:*"), "none")
        parts = collect(folder, store, redis)
        assert all(part.complete for part in parts), at
        assert sum(part.enqueued for part in parts) == 0, at
        assert not list(folder.root.rglob("*.tmp")), at
        again = contents(folder.root)
        assert again.keys() == whole.keys(), at
        for name, data in again.items():
            # Records tell the store's id, which is another one each time.
            if name.startswith(("samples/", "previews/", "shards/")) or "/shards/" in name:
                assert data == whole[name], (at, name)
        check_manifest(folder)
        assert read_manifest(folder.root).n_completed == 2
        assert store.record_ids(RUN.id) == store.record_ids(SENSITIVITY.id) == set(), at
        shutil.rmtree(folder.root)
    # 2 images of 2 samples (or one and the shard), a preview and a record, 1 pair and its record, model and
    # manifest: 12 files.
    assert at > 12 * 5


@pytest.fixture
def full(
    tmp_path: Path, redis: Redis, shards: dict[str, bytes]
) -> Iterator[tuple[CalibFolder, RelayStore, Path]]:
    with small_disk(tmp_path / "disk", kilobytes=512) as disk:
        store = RelayStore(redis)
        yield prepare(disk / "calibration_data", store, shards), store, disk


class TestDisk:
    """`producer collect` as a user starts it, on a disk of its own."""

    def run(self, folder: CalibFolder, redis_url: str) -> Any:
        arguments = ["collect", "--calib-dir", str(folder.root), "--redis-url", redis_url]
        return CliRunner().invoke(main, arguments)

    @pytest.mark.parametrize("free", [4096, 20_480, 45_056])
    def test_full(self, full: tuple[CalibFolder, RelayStore, Path], redis_url: str, free: int) -> None:
        folder, store, disk = full
        space = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(space.f_bavail * space.f_frsize - free))
        result = self.run(folder, redis_url)
        assert result.exit_code == 2
        (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
        assert "No space left on device; nothing that was finished is lost" in line
        assert str(folder.root) in line
        assert ".tmp" not in line
        check_manifest(folder)
        check_records(folder)
        collected = len(folder.records.read())
        assert len(store.record_ids(RUN.id)) >= 2 - collected
        (disk / "ballast").unlink()
        Collector(Ledger(folder, store._redis, store), complain=_fail).collect()
        assert read_manifest(folder.root).n_completed == 2
        check_manifest(folder)
        assert not list(folder.root.rglob("*.tmp"))

    def test_read_only(self, full: tuple[CalibFolder, RelayStore, Path], redis_url: str) -> None:
        folder, store, disk = full
        remount(disk, "ro")
        result = self.run(folder, redis_url)
        assert result.exit_code == 2
        assert "Read-only file system; nothing that was finished is lost" in result.output
        assert len(store.record_ids(RUN.id)) == 2
        remount(disk, "rw")
        Collector(Ledger(folder, store._redis, store), complain=_fail).collect()
        assert json.loads(folder.manifest_path.read_text())["n_completed"] == 2


def remount(disk: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True, capture_output=True)
