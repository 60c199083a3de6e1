"""A store that goes away while `producer collect` waits: told when it starts and when it ends, waited for."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis

from producer.collect import Collector
from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import RunFile
from producer.folder.tasks import calibration_tasks
from producer.ledger import Ledger
from shared.errors import ShardCorruptError, WrongStoreError
from shared.outage import TELL_SECONDS, Outage
from shared.stores.folder_store import FolderStore
from shared.stores.records import Record
from tests.calibration_shards import calibration_shard
from tests.tasks import SETTINGS, record_of, wait_until

ROOT = Path(__file__).parent.parent


class Shared:
    """Two images of a run whose shards wait in a folder that all machines see."""

    def __init__(self, root: Path) -> None:
        self.path, self.away = root / "share", root / "away"
        self.store = FolderStore.open(str(self.path), create=True)
        self.folder = CalibFolder(root / "calib")
        run = RunFile(settings=SETTINGS, prompts=("a", "b"), store_id=self.store.id, store=str(self.path))
        self.folder.write_run(run)
        self.tasks = calibration_tasks(run)

    def leave(self, place: int) -> None:
        data = calibration_shard(place).to_bytes()
        assert self.store.put(record_of(self.tasks[place], data), data) == "stored"


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared(tmp_path)


def test_it_is_told_when_it_starts_and_when_it_ends() -> None:
    said: list[str] = []
    now = [0.0]
    outage = Outage("the share", said.append, lambda: now[0])
    outage.answered()
    outage.failed("gone")
    outage.answered()
    assert said == [], "one failure is no outage"
    for _ in range(10):
        outage.failed("gone\x1b[2J")
        now[0] += TELL_SECONDS
    outage.answered()
    outage.answered()
    assert said == [
        "the share does not answer (gone\\u001b[2J); trying on, nothing is lost",
        f"the share answers again, after {10 * TELL_SECONDS:.0f} s",
    ]


class TestFolder:
    """What is said of files while the whole share is away."""

    @pytest.fixture
    def record(self, shared: Shared) -> Record:
        shared.leave(0)
        record = shared.store.record(SETTINGS.id, shared.tasks[0].id)
        shared.path.rename(shared.away)
        return record

    def test_no_file_is_called_lost(self, shared: Shared, record: Record) -> None:
        with pytest.raises(WrongStoreError):
            shared.store.shard(record)
        with pytest.raises(WrongStoreError):
            shared.store.record(SETTINGS.id, record.id)
        shared.away.rename(shared.path)
        next(shared.path.rglob("*.npz")).unlink()
        with pytest.raises(ShardCorruptError, match="is missing in"):
            shared.store.shard(record)

    def test_a_share_that_goes_away_in_mid_look_is_not_empty(
        self, shared: Shared, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared.leave(0)
        check = FolderStore._check_marker
        looks: list[int] = []

        def check_and_unmount(store: FolderStore) -> None:
            check(store)
            looks.append(1)
            if len(looks) == 1:
                shared.path.rename(shared.away)

        monkeypatch.setattr(FolderStore, "_check_marker", check_and_unmount)
        with pytest.raises(WrongStoreError):
            shared.store.record_ids(SETTINGS.id)


def test_one_pass_alone_does_not_wait(shared: Shared, redis: Redis) -> None:
    collector = Collector(Ledger(shared.folder, redis, shared.store), complain=print)
    shared.path.rename(shared.away)
    with pytest.raises(WrongStoreError, match="is the right share mounted"):
        collector.collect()


@pytest.mark.slow
def test_a_collector_waits_for_a_share_that_is_unmounted(
    shared: Shared, redis_url: str, tmp_path: Path
) -> None:
    command = ["collect", "--wait", "--calib-dir", str(shared.folder.root), "--redis-url", redis_url]
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "producer.cli", *command], cwd=ROOT, stdout=said, stderr=said, text=True
        )
        try:
            shared.leave(0)
            wait_until(lambda: shared.folder.records.ids() == {shared.tasks[0].id}, 60)
            shared.path.rename(shared.away)
            wait_until(lambda: "does not answer" in (tmp_path / "said").read_text(), 60)
            time.sleep(4)
            assert process.poll() is None
            assert not shared.path.exists(), "nothing is written where no share is"
            shared.away.rename(shared.path)
            wait_until(lambda: "answers again" in (tmp_path / "said").read_text(), 60)
            shared.leave(1)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    lines = (tmp_path / "said").read_text().splitlines()
    told = [line for line in lines if str(shared.path) in line]
    assert len(told) == 2, lines
    assert told[0].startswith(f"{shared.path} does not answer (")
    assert told[0].endswith("is the right share mounted?); trying on, nothing is lost")
    assert told[1].startswith(f"{shared.path} answers again, after ")
    assert not [line for line in lines if "dropped" in line]
    assert [line for line in lines if line.startswith("calibration: 2 of 2")]
