"""One writer a folder: processes that collect and enqueue at once take turns; a dead one holds up nobody."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from producer.folder import folder_lock
from producer.folder.calib_folder import CalibFolder
from producer.folder.folder_lock import FolderLock
from producer.folder.run_file import RunFile
from producer.folder.tasks import calibration_tasks
from shared.errors import FolderLostError
from shared.layout.reader import read_manifest
from shared.stores.relay_store import RelayStore
from tests.calibration_shards import calibration_shard
from tests.tasks import SETTINGS, record_of, wait_until

HOLD = """
import sys, time
from pathlib import Path
from producer.folder.calib_folder import CalibFolder
with CalibFolder(Path(sys.argv[1])).locked("collect"):
    print("held", flush=True)
    time.sleep(600)
"""


def prepare(root: Path, redis: Redis, images: int) -> CalibFolder:
    """A folder whose images are all finished and wait in the relay."""
    folder = CalibFolder(root)
    run = RunFile(
        settings=SETTINGS, prompts=tuple(f"prompt {n}" for n in range(images)), store_id="relay", store=None
    )
    folder.write_run(run)
    store = RelayStore(redis)
    for task in calibration_tasks(run):
        shard = calibration_shard(task.image_index).to_bytes()
        assert store.put(record_of(task, shard), shard) == "stored"
    return folder


def producer(redis_url: str, folder: CalibFolder, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "producer.cli", *arguments, "--calib-dir", str(folder.root)],
        env={"REDIS_URL": redis_url, "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_second_collector_says_who_is_first_and_goes_on_when_that_one_dies(
    tmp_path: Path, redis: Redis, redis_url: str
) -> None:
    folder = prepare(tmp_path / "calib", redis, images=1)
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        second = producer(redis_url, folder, "collect")
        assert second.stdout is not None
        line = second.stdout.readline()
        assert line.startswith("waiting for `producer collect` on ")
        assert f", process {first.pid}, since 20" in line
        assert line.endswith(f", which works in {folder.root}\n")
        assert second.poll() is None
        assert not folder.manifest_path.exists()
    finally:
        first.kill()
        first.wait()
    assert second.wait(20) == 0
    assert read_manifest(folder.root).n_completed == 1


@pytest.mark.slow
def test_collectors_and_requests_at_once(tmp_path: Path, redis: Redis, redis_url: str) -> None:
    """Two collectors of one folder, then two requests at once: no image and no request is lost."""
    folder = prepare(tmp_path / "calib", redis, images=12)
    at_once = [producer(redis_url, folder, "collect") for _ in range(2)]
    assert [process.wait(60) for process in at_once] == [0, 0]
    assert read_manifest(folder.root).n_completed == 12
    at_once = [producer(redis_url, folder, "enqueue-sensitivity", "--bits", bits) for bits in ("2", "8")]
    assert [process.wait(60) for process in at_once] == [0, 0]
    (place,) = folder.sensitivities()
    assert place.require_request().bits == (2, 8)


class Machines:
    """Two locks on one folder, as two machines have them on a share that passes no OS locks on."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.first = FolderLock(root / ".bitfleet", self.told.append)
        self.second = FolderLock(root / ".bitfleet", self.told.append)
        monkeypatch.setattr(folder_lock, "_os_lock", lambda descriptor: None)
        monkeypatch.setattr(folder_lock, "TELL_SECONDS", 0.0)
        monkeypatch.setattr(folder_lock, "POLL_SECONDS", 0.01)
        monkeypatch.setattr(folder_lock, "BEAT_SECONDS", 0.02)
        monkeypatch.setattr(folder_lock, "STALE_SECONDS", 0.3)

    def take_second(self) -> tuple[threading.Thread, threading.Event, threading.Event]:
        """Take it in another thread; return that, and the events of having it and of giving it back."""
        has, give_back = threading.Event(), threading.Event()

        def run() -> None:
            with self.second.hold("enqueue-sensitivity"):
                has.set()
                give_back.wait(20)

        thread = threading.Thread(target=run)
        thread.start()
        return thread, has, give_back


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(tmp_path, monkeypatch)


def test_without_os_locks_a_living_holder_is_waited_for(machines: Machines) -> None:
    with machines.first.hold("collect"):
        thread, has, give_back = machines.take_second()
        give_back.set()
        wait_until(lambda: machines.told)
        # Longer than a silent holder would keep it.
        assert not has.wait(3 * folder_lock.STALE_SECONDS)
        machines.first.check()
    thread.join(20)
    assert has.is_set()
    assert machines.told[0].startswith("waiting for `producer collect` on ")
    assert len(machines.told) == 1


def test_without_os_locks_a_silent_holder_is_replaced_and_notices(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = threading.Event()
    content = folder_lock._content

    def sleep_first(path: Path) -> Any:
        # The first machine's beat waits until it may wake up.
        if threading.current_thread().name == "beat of the first":
            assert beat.wait(20)
        return content(path)

    monkeypatch.setattr(folder_lock, "_content", sleep_first)
    with machines.first.hold("collect"):
        assert machines.first._beating is not None
        machines.first._beating[0].name = "beat of the first"
        thread, has, give_back = machines.take_second()
        assert has.wait(20), "a holder that says nothing is given up"
        beat.set()
        wait_until(lambda: machines.first._lost)
        with pytest.raises(FolderLostError, match=r"`producer enqueue-sensitivity` on .* has taken over"):
            machines.first.check()
    # Leaving does not take it from the one who has it now.
    machines.second.check()
    time.sleep(3 * folder_lock.BEAT_SECONDS)
    machines.second.check()
    give_back.set()
    thread.join(20)
    with machines.first.hold("collect"):
        machines.first.check()


def test_a_damaged_holder_file_is_replaced_in_time(machines: Machines, tmp_path: Path) -> None:
    (tmp_path / ".bitfleet").mkdir()
    (tmp_path / ".bitfleet" / "holder.json").write_bytes(b"\x1b[31m{")
    with machines.first.hold("collect"):
        machines.first.check()
    assert machines.told == [f"waiting for another process, which works in {tmp_path}"]


def test_what_a_killed_process_left_is_swept_by_the_next(tmp_path: Path) -> None:
    folder = CalibFolder(tmp_path)
    left = [
        tmp_path / "samples" / ".image-00000-step-000.npz.a1b2c3d4.tmp",
        tmp_path / ".manifest.json.abcd_123.tmp",
        tmp_path / "sensitivity" / "0123456789ab" / "records" / ".sen-1.json.zzzzzzzz.tmp",
    ]
    others = [tmp_path / "samples" / "mine.tmp", tmp_path / ".bitfleet" / "redis" / ".temp.a1b2c3d4.tmp"]
    for path in [*left, *others]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with folder.locked("collect"):
        pass
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)
