"""The shard store's contract, kept by every store, and what is particular to each."""

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from redis import Redis

from shared.errors import ShardCorruptError, StoreError, WrongStoreError
from shared.folder_store import MARKER, FolderStore
from shared.records import encode_record
from shared.relay_store import RelayStore
from shared.store import ShardStore, open_store
from tests.tasks import SENSITIVITY, image_task, layer_task, record_of

SHARD = b"the bytes of a shard" * 10
TASK = image_task()
RECORD = record_of(TASK, SHARD)


def shards_on(store: FolderStore) -> list[str]:
    """Every file of a folder store but its marker."""
    files = store._fs.find(store._root)
    return sorted(name.rsplit("/", 1)[-1] for name in files if not name.endswith(MARKER))


class StoreContract:
    """What every store keeps; `damage` reaches around it to the bytes themselves."""

    def damage_shard(self, store: Any, data: bytes | None) -> None:
        """Replace RECORD's shard, or take it away."""
        raise NotImplementedError

    def damage_record(self, store: Any, task_id: str, data: bytes) -> None:
        raise NotImplementedError

    def damage_blob(self, store: Any, digest: str, data: bytes) -> None:
        raise NotImplementedError

    def break_second_write(self, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the shard be written, and its record fail."""
        raise NotImplementedError

    def test_put_then_read_back(self, store: ShardStore) -> None:
        assert not store.has_record(TASK.group, TASK.id)
        assert store.put(RECORD, SHARD) == "stored"
        assert store.has_record(TASK.group, TASK.id)
        assert store.record_ids(TASK.group) == {TASK.id}
        record = store.record(TASK.group, TASK.id)
        assert record == RECORD
        assert store.shard(record) == SHARD

    def test_an_empty_store_has_nothing(self, store: ShardStore) -> None:
        assert store.record_ids("nothing") == set()
        with pytest.raises(ShardCorruptError):
            store.record(TASK.group, TASK.id)
        with pytest.raises(ShardCorruptError, match="image 0"):
            store.shard(RECORD)

    def test_the_first_record_counts(self, store: ShardStore) -> None:
        store.put(RECORD, SHARD)
        second = record_of(TASK, b"another", host="air")
        assert store.put(second, b"another") == "exists"
        assert store.record(TASK.group, TASK.id).host == "studio"
        assert store.shard(store.record(TASK.group, TASK.id)) == SHARD

    def test_a_crash_before_the_record_leaves_nothing_that_looks_done(
        self, store: ShardStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            self.break_second_write(store, patch)
            with pytest.raises((StoreError, KeyboardInterrupt)):
                store.put(RECORD, SHARD)
        assert not store.has_record(TASK.group, TASK.id)
        assert store.record_ids(TASK.group) == set()
        # The next attempt is a first one, and its bytes are what is read.
        again = record_of(TASK, b"again", host="air")
        assert store.put(again, b"again") == "stored"
        assert store.shard(store.record(TASK.group, TASK.id)) == b"again"

    @pytest.mark.parametrize(
        "data", [SHARD[:-1], SHARD + b"x", b"", None], ids=["cut", "longer", "empty", "gone"]
    )
    def test_a_truncated_or_missing_shard_is_named(self, store: ShardStore, data: bytes | None) -> None:
        store.put(RECORD, SHARD)
        self.damage_shard(store, data)
        with pytest.raises(ShardCorruptError, match=f"{TASK.id}.*image 0"):
            store.shard(RECORD)

    def test_an_altered_shard_is_named(self, store: ShardStore) -> None:
        store.put(RECORD, SHARD)
        self.damage_shard(store, SHARD[:-1] + b"X")
        with pytest.raises(ShardCorruptError, match=f"{TASK.id}.*sha256"):
            store.shard(RECORD)

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"task": 1}', b"null"], ids=repr)
    def test_an_unreadable_record_is_there_but_corrupt(self, store: ShardStore, data: bytes) -> None:
        store.put(RECORD, SHARD)
        self.damage_record(store, TASK.id, data)
        assert store.has_record(TASK.group, TASK.id)
        assert store.record_ids(TASK.group) == {TASK.id}
        with pytest.raises(ShardCorruptError):
            store.record(TASK.group, TASK.id)
        store.discard(TASK.group, TASK.id)
        assert store.put(RECORD, SHARD) == "stored"

    @pytest.mark.parametrize(
        "foreign",
        [image_task(1), layer_task()],
        ids=["another image", "another kind"],
    )
    def test_another_tasks_record_is_refused(self, store: ShardStore, foreign: Any) -> None:
        store.put(RECORD, SHARD)
        self.damage_record(store, TASK.id, encode_record(record_of(foreign, SHARD)))
        with pytest.raises(ShardCorruptError, match=f"{TASK.id}.*{foreign.id}"):
            store.record(TASK.group, TASK.id)

    def test_discard_forgets_both_and_may_be_repeated(self, store: ShardStore) -> None:
        store.discard(TASK.group, TASK.id)
        store.put(RECORD, SHARD)
        for _ in range(2):
            store.discard(TASK.group, TASK.id)
            assert store.record_ids(TASK.group) == set()
            with pytest.raises(ShardCorruptError):
                store.shard(RECORD)
        assert store.put(RECORD, SHARD) == "stored"

    def test_discard_leaves_names_that_only_begin_alike(self, store: ShardStore) -> None:
        # cal-…-100000 begins with cal-…-10000's whole id.
        short, long = image_task(10_000), image_task(100_000)
        assert long.id.startswith(short.id)
        for task in (short, long):
            store.put(record_of(task, SHARD), SHARD)
        store.discard(short.group, short.id)
        assert store.record_ids(TASK.group) == {long.id}
        assert store.shard(record_of(long, SHARD)) == SHARD

    def test_groups_do_not_see_each_other(self, store: ShardStore) -> None:
        task = layer_task()
        store.put(RECORD, SHARD)
        store.put(record_of(task, b"layer"), b"layer")
        assert store.record_ids(TASK.group) == {TASK.id}
        assert store.record_ids(SENSITIVITY.id) == {task.id}
        assert not store.has_record(SENSITIVITY.id, TASK.id)
        store.discard(SENSITIVITY.id, TASK.id)
        store.discard(SENSITIVITY.id, task.id)
        assert store.shard(RECORD) == SHARD

    def test_a_second_client_sees_the_same(self, store: ShardStore, second: ShardStore) -> None:
        assert second.id == store.id
        # Looked at before, so that a cached listing would be found out.
        assert second.record_ids(TASK.group) == set()
        store.put(RECORD, SHARD)
        assert second.has_record(TASK.group, TASK.id)
        assert second.record_ids(TASK.group) == {TASK.id}
        assert second.shard(second.record(TASK.group, TASK.id)) == SHARD
        assert second.put(RECORD, SHARD) == "exists"
        store.discard(TASK.group, TASK.id)
        assert not second.has_record(TASK.group, TASK.id)

    def test_blobs(self, store: ShardStore) -> None:
        data = bytes(range(256))
        digest = hashlib.sha256(data).hexdigest()
        with pytest.raises(StoreError, match=digest[:12]):
            store.blob(digest)
        assert not store.has_blob(digest)
        store.put_blob(digest, data)
        store.put_blob(digest, data)
        assert store.has_blob(digest)
        assert store.blob(digest) == data
        assert store.record_ids("blobs") == set()
        self.damage_blob(store, digest, data[:-1])
        with pytest.raises(ShardCorruptError, match=digest[:12]):
            store.blob(digest)
        for _ in range(2):
            store.discard_blob(digest)
        with pytest.raises(StoreError):
            store.blob(digest)


class TestRelayStore(StoreContract):
    @pytest.fixture
    def store(self, redis: Redis) -> RelayStore:
        return RelayStore(redis)

    @pytest.fixture
    def second(self, redis_url: str) -> Iterator[RelayStore]:
        with Redis.from_url(redis_url) as client:
            yield RelayStore(client)

    def damage_shard(self, store: Any, data: bytes | None) -> None:
        key = f"bitfleet:shard:{TASK.group}:{TASK.id}"
        assert store._redis.delete(key) == 1
        if data is not None:
            store._redis.set(key, data)

    def damage_record(self, store: Any, task_id: str, data: bytes) -> None:
        assert store._redis.hset(f"bitfleet:records:{TASK.group}", task_id, data) == 0

    def damage_blob(self, store: Any, digest: str, data: bytes) -> None:
        assert store._redis.set(f"bitfleet:blob:{digest}", data)

    def break_second_write(self, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        # The script is one step for Redis: what can fail is the whole of it.
        monkeypatch.setattr(store, "_put", _raise_store_error)

    def test_nothing_of_it_is_left_when_the_script_fails(self, store: RelayStore, redis: Redis) -> None:
        redis.config_set("maxmemory", 1)
        # A full Redis is a full relay: the worker waits for the collector.
        assert store.put(RECORD, SHARD) == "full"
        redis.config_set("maxmemory", 0)
        assert redis.keys("bitfleet:*") == []

    def test_limit(self, store: RelayStore) -> None:
        store.set_limit(2 * len(SHARD))
        tasks = [image_task(index) for index in range(3)]
        outcomes = [store.put(record_of(task, SHARD), SHARD) for task in tasks]
        assert outcomes == ["stored", "stored", "full"]
        assert store.record_ids(TASK.group) == {tasks[0].id, tasks[1].id}
        assert store.used_bytes == 2 * len(SHARD)
        store.discard(TASK.group, tasks[0].id)
        assert store.put(record_of(tasks[2], SHARD), SHARD) == "stored"
        # One that is there already is not held up by a full relay.
        assert store.put(record_of(tasks[2], SHARD), SHARD) == "exists"

    def test_an_empty_relay_takes_a_shard_over_the_limit(self, store: RelayStore) -> None:
        store.set_limit(10)
        assert store.put(RECORD, SHARD) == "stored"
        assert store.put(record_of(image_task(1), b"x"), b"x") == "full"
        store.discard(TASK.group, TASK.id)
        assert store.put(record_of(image_task(1), b"x"), b"x") == "stored"

    def test_bytes_are_counted_exactly(self, store: RelayStore, redis: Redis) -> None:
        for index in range(5):
            shard = b"x" * (index * 7)
            store.put(record_of(image_task(index), shard), shard)
            store.put(record_of(image_task(index), shard), shard)
        stored = sum(redis.strlen(key) for key in redis.keys("bitfleet:shard:*"))
        assert store.used_bytes == stored == 70
        for index in (3, 3, 0, 1):
            store.discard(TASK.group, image_task(index).id)
        assert store.used_bytes == 42
        for index in range(5):
            store.discard(TASK.group, image_task(index).id)
        assert store.used_bytes == 0
        assert redis.keys("bitfleet:relay:*") == []

    def test_a_shard_larger_than_its_record_is_not_fetched(self, store: RelayStore) -> None:
        class NoGet:
            def strlen(self, key: str) -> int:
                return len(SHARD) + 1

        store._redis = NoGet()  # type: ignore[assignment]
        with pytest.raises(ShardCorruptError, match=f"{len(SHARD) + 1} bytes"):
            store.shard(RECORD)

    def test_open_store_without_a_url(self, redis: Redis) -> None:
        assert isinstance(open_store(None, redis), RelayStore)


class FolderContract(StoreContract):
    def path(self, store: Any, pattern: str) -> str:
        (path,) = [name for name in store._fs.find(store._root) if pattern in name]
        return path

    def damage_shard(self, store: Any, data: bytes | None) -> None:
        path = self.path(store, f"{TASK.id}.{RECORD.sha256[:16]}.npz")
        store._fs.rm_file(path)
        if data is not None:
            store._fs.pipe_file(path, data)

    def damage_record(self, store: Any, task_id: str, data: bytes) -> None:
        store._fs.pipe_file(self.path(store, f"{task_id}.json"), data)

    def damage_blob(self, store: Any, digest: str, data: bytes) -> None:
        store._fs.pipe_file(self.path(store, digest), data)

    def break_second_write(self, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        pipe_file, calls = store._fs.pipe_file, []

        def fail_at_second(path: str, value: bytes, **kwargs: Any) -> None:
            calls.append(path)
            if len(calls) == 2:
                raise KeyboardInterrupt
            pipe_file(path, value, **kwargs)

        monkeypatch.setattr(store._fs, "pipe_file", fail_at_second)

    def test_missing_marker_is_refused_without_create(self, url: str) -> None:
        with pytest.raises(WrongStoreError, match="no shard store"):
            FolderStore.open(url)

    def test_create_keeps_a_store_that_is_there(self, store: ShardStore, url: str) -> None:
        assert FolderStore.open(url, create=True).id == store.id

    def test_marker_of_another_store(self, store: FolderStore) -> None:
        store.put(RECORD, SHARD)
        store._fs.pipe_file(self.path(store, MARKER), b'{"store_id":"other"}')
        for act in self.every_use(store):
            with pytest.raises(WrongStoreError):
                act()

    def test_marker_vanishes(self, store: FolderStore) -> None:
        store.put(RECORD, SHARD)
        store._fs.rm_file(self.path(store, MARKER))
        for act in self.every_use(store):
            with pytest.raises(WrongStoreError):
                act()
        assert not [name for name in shards_on(store) if name.startswith(image_task(1).id)]

    @staticmethod
    def every_use(store: FolderStore) -> list[Any]:
        other = image_task(1)
        return [
            lambda: store.put(record_of(other, SHARD), SHARD),
            lambda: store.has_record(TASK.group, TASK.id),
            lambda: store.record_ids(TASK.group),
            lambda: store.put_blob("0" * 64, b""),
            lambda: store.blob("0" * 64),
        ]

    @pytest.mark.parametrize(
        "marker",
        [
            b"",
            b"{}",
            b"[]",
            b"\xff",
            b'{"store_id": 1}',
            b'{"store_id":"\xff"}',
            b'{"store_id":"../x"}',
            b"null",
        ],
        ids=repr,
    )
    def test_unreadable_marker(self, store: FolderStore, url: str, marker: bytes) -> None:
        store._fs.pipe_file(self.path(store, MARKER), marker)
        with pytest.raises(StoreError):
            FolderStore.open(url)

    @pytest.mark.parametrize(
        "name", ["..", "../up", "a/b", "/etc", "", "a.b", "a\n", "ä", "*", "~"], ids=repr
    )
    def test_names_that_would_escape(self, store: FolderStore, name: str) -> None:
        before = shards_on(store)
        for act in (
            lambda: store.has_record(name, TASK.id),
            lambda: store.has_record(TASK.group, name),
            lambda: store.record_ids(name),
            lambda: store.discard(TASK.group, name),
            lambda: store.discard(name, TASK.id),
            lambda: store.put_blob(name, b"x"),
            lambda: store.discard_blob(name),
        ):
            with pytest.raises(StoreError, match="can't be a name"):
                act()
        assert shards_on(store) == before

    def test_strangers_files_are_no_records(self, store: FolderStore) -> None:
        store.put(RECORD, SHARD)
        folder = self.path(store, f"{TASK.id}.json").rpartition("/")[0]
        for name in (".DS_Store", "._x.json", "x y.json", ".json", "notes.txt"):
            store._fs.pipe_file(f"{folder}/{name}", b"{}")
        assert store.record_ids(TASK.group) == {TASK.id}

    def test_a_record_of_gigabytes_is_not_read(
        self, store: FolderStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.put(RECORD, SHARD)
        self.damage_record(store, TASK.id, b" " * (65 * 1024))
        monkeypatch.setattr(store._fs, "cat_file", _raise_store_error)
        with pytest.raises(ShardCorruptError, match="66560 bytes"):
            store.record(TASK.group, TASK.id)

    def test_two_attempts_never_share_a_file(self, store: FolderStore) -> None:
        # Both looked before either wrote: the slower one's record must not vouch for the other's bytes.
        first, second = record_of(TASK, b"first"), record_of(TASK, b"second")
        store._write(store._shard_path(first), b"first")
        store.put(second, b"second")
        assert store.shard(second) == b"second"
        store.discard(TASK.group, TASK.id)
        assert shards_on(store) == []


class TestLocalFolderStore(FolderContract):
    # A bracket means something to glob(), and nothing to people who name folders.
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return str(tmp_path / "share [1] *?")

    @pytest.fixture
    def store(self, url: str) -> FolderStore:
        return FolderStore.open(url, create=True)

    @pytest.fixture
    def second(self, store: FolderStore, url: str) -> ShardStore:
        return FolderStore.open(url)

    def test_no_temporary_files_stay(self, store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(store._fs, "mv", _raise_store_error)
            with pytest.raises(StoreError):
                store.put(RECORD, SHARD)
        assert shards_on(store) == []

    def test_files_of_others_and_links_stay(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside.json"
        outside.write_text("mine")
        store = FolderStore.open(str(tmp_path / "store"), create=True)
        store.put(RECORD, SHARD)
        record = tmp_path / "store" / TASK.group / f"{TASK.id}.json"
        record.unlink()
        record.symlink_to(outside)
        store.discard(TASK.group, TASK.id)
        assert outside.read_text() == "mine"
        assert not record.is_symlink()

    def test_an_unmounted_share_swallows_nothing(self, store: FolderStore, url: str) -> None:
        Path(url).rename(Path(url).with_name("elsewhere"))
        with pytest.raises(WrongStoreError, match="is the right share mounted"):
            store.put(RECORD, SHARD)
        assert not Path(url).exists()

    def test_a_file_where_the_folder_belongs(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(StoreError, match="file"):
            FolderStore.open(str(tmp_path / "file"), create=True)

    def test_a_folder_that_can_not_be_written(self, tmp_path: Path) -> None:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        store = FolderStore.open(str(tmp_path / "store"), create=True)
        (tmp_path / "store").chmod(0o500)
        with pytest.raises(StoreError, match="Permission denied"):
            store.put(RECORD, SHARD)

    @pytest.mark.parametrize("full_at", ["shard", "record"])
    def test_a_full_disk_tears_nothing(self, tmp_path: Path, full_at: str) -> None:
        with small_disk(tmp_path / "disk", kilobytes=64) as disk:
            store = FolderStore.open(str(disk), create=True)
            (disk / TASK.group).mkdir()
            shard = bytes(64 * 1024) if full_at == "shard" else bytes(4096)
            record = record_of(TASK, shard)
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            (disk / "ballast").write_bytes(bytes(free - (4096 if full_at == "record" else 8192)))
            with pytest.raises(StoreError, match="No space left"):
                store.put(record, shard)
            assert store.record_ids(TASK.group) == set()
            assert not [name for name in shards_on(store) if name.endswith(".tmp")]
            if full_at == "shard":
                assert shards_on(store) == ["ballast"]
            (disk / "ballast").unlink()
            small = record_of(TASK, SHARD)
            assert store.put(small, SHARD) == "stored"
            assert store.shard(small) == SHARD

    def test_a_read_only_disk(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", kilobytes=64) as disk:
            store = FolderStore.open(str(disk), create=True)
            store.put(RECORD, SHARD)
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True, capture_output=True)
            for act in (
                lambda: store.put(record_of(image_task(1), SHARD), SHARD),
                lambda: store.discard(TASK.group, TASK.id),
            ):
                with pytest.raises(StoreError, match="Read-only file system"):
                    act()
            assert store.shard(store.record(TASK.group, TASK.id)) == SHARD


class TestMemoryFolderStore(FolderContract):
    """An object store: no renaming, whole objects only."""

    @pytest.fixture
    def url(self) -> Iterator[str]:
        name = f"memory://bucket-{uuid4().hex}/run"
        yield name
        fsspec.filesystem("memory").store.clear()

    @pytest.fixture
    def store(self, url: str) -> FolderStore:
        return FolderStore.open(url, create=True)

    @pytest.fixture
    def second(self, store: FolderStore, url: str) -> ShardStore:
        return FolderStore.open(url)


@pytest.mark.parametrize("url", ["nosuch://host/x", "s3://", "gs://bucket/x", "github://"], ids=str)
def test_url_that_can_not_be_used(url: str) -> None:
    with pytest.raises(StoreError, match="store"):
        FolderStore.open(url)


def test_password_of_a_store_is_not_shown() -> None:
    with pytest.raises(StoreError) as caught:
        FolderStore.open("nosuch://user:secret@host/x")
    assert "secret" not in str(caught.value)


def _raise_store_error(*args: Any, **kwargs: Any) -> Any:
    raise StoreError("broken for a test")


@contextlib.contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own, or a skip where mounting is not allowed."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a small tmpfs can't be mounted here (needs root on Linux)")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
