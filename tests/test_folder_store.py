"""Folders keep the store's contract: local ones, object stores, full and vanished ones."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest

from shared.errors import ShardCorruptError, StoreError, StoreTroubleError, WrongStoreError
from shared.stores.folder_store import MARKER, FolderStore
from shared.stores.store import ShardStore
from tests.store_contract import RECORD, SHARD, TASK, StoreContract
from tests.tasks import image_task, record_of


def shards_on(store: FolderStore) -> list[str]:
    """Every file of a folder store but its marker."""
    files = store._fs.find(store._root)
    return sorted(name.rsplit("/", 1)[-1] for name in files if not name.endswith(MARKER))


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
            lambda: store.has_record(TASK.namespace, TASK.id),
            lambda: store.record_ids(TASK.namespace),
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
            lambda: store.has_record(TASK.namespace, name),
            lambda: store.record_ids(name),
            lambda: store.discard(TASK.namespace, name),
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
        assert store.record_ids(TASK.namespace) == {TASK.id}

    def test_a_record_of_gigabytes_is_not_read(
        self, store: FolderStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.put(RECORD, SHARD)
        self.damage_record(store, TASK.id, b" " * (65 * 1024))
        monkeypatch.setattr(store._fs, "cat_file", _raise_store_error)
        with pytest.raises(ShardCorruptError, match="66560 bytes"):
            store.record(TASK.namespace, TASK.id)

    def test_two_attempts_never_share_a_file(self, store: FolderStore) -> None:
        # Both looked before either wrote: the slower one's record must not vouch for the other's bytes.
        first, second = record_of(TASK, b"first"), record_of(TASK, b"second")
        store._write(store._shard_path(first), b"first")
        store.put(second, b"second")
        assert store.shard(second) == b"second"
        store.discard(TASK.namespace, TASK.id)
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
        record = tmp_path / "store" / TASK.namespace / f"{TASK.id}.json"
        record.unlink()
        record.symlink_to(outside)
        store.discard(TASK.namespace, TASK.id)
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
            (disk / TASK.namespace).mkdir()
            shard = bytes(64 * 1024) if full_at == "shard" else bytes(4096)
            record = record_of(TASK, shard)
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            (disk / "ballast").write_bytes(bytes(free - (4096 if full_at == "record" else 8192)))
            with pytest.raises(StoreError, match="No space left"):
                store.put(record, shard)
            assert store.record_ids(TASK.namespace) == set()
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
                lambda: store.discard(TASK.namespace, TASK.id),
            ):
                with pytest.raises(StoreError, match="Read-only file system"):
                    act()
            assert store.shard(store.record(TASK.namespace, TASK.id)) == SHARD


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


class _UnreachableError(Exception):
    """As paramiko's and botocore's errors: neither OSError nor ValueError."""


@pytest.mark.parametrize("method", ["exists", "makedirs", "pipe_file", "cat_file", "ls", "rm_file", "info"])
def test_whatever_a_file_system_raises_is_one_line(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://bucket-{uuid4().hex}"
    store = FolderStore.open(url, create=True)
    store.put(RECORD, SHARD)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise _UnreachableError("no route to host")

    def use_all() -> None:
        FolderStore.open(f"memory://bucket-{uuid4().hex}", create=True)
        store.has_record(TASK.namespace, TASK.id)
        store.record_ids(TASK.namespace)
        store.shard(store.record(TASK.namespace, TASK.id))
        store.put(record_of(image_task(1), SHARD), SHARD)
        store.discard(TASK.namespace, TASK.id)

    monkeypatch.setattr(type(store._fs), method, fail)
    with pytest.raises(StoreError, match="no route to host"):
        use_all()


def test_a_store_out_of_reach_is_not_marked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://bucket-{uuid4().hex}"
    store = FolderStore.open(url, create=True)
    with monkeypatch.context() as patch:
        # fsspec's exists() takes any error for "no".
        patch.setattr(type(store._fs), "exists", lambda *_, **__: False)
        patch.setattr(type(store._fs), "cat_file", _raise_os_error)
        with pytest.raises(StoreError, match="timed out"):
            FolderStore.open(url, create=True)
    assert FolderStore.open(url).id == store.id


@pytest.mark.parametrize("url", ["nosuch://host/x", "s3://", "gs://bucket/x", "github://"], ids=str)
def test_url_that_can_not_be_used(url: str) -> None:
    with pytest.raises(StoreError, match="store"):
        FolderStore.open(url)


def test_password_of_a_store_is_not_shown() -> None:
    with pytest.raises(StoreError) as caught:
        FolderStore.open("nosuch://user:secret@host/x")
    assert "secret" not in str(caught.value)


def _raise_os_error(*args: Any, **kwargs: Any) -> Any:
    raise OSError("timed out")


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


@pytest.mark.parametrize(
    ("url", "platform", "guarded"),
    [
        ("/Users/me/Documents/store", "darwin", True),
        ("/Volumes/share", "darwin", True),
        ("/Users/me/Library/Mobile Documents/store", "darwin", True),
        ("/Users/me/store", "darwin", False),
        ("/Volumes/share", "linux", False),
    ],
)
def test_macos_guards_some_folders(
    monkeypatch: pytest.MonkeyPatch, url: str, platform: str, guarded: bool
) -> None:
    """No Mac was at hand: what it answers is made up."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("shared.stores.folder_store.open_filesystem", refuse)
    monkeypatch.setattr("shared.stores.folder_store.sys.platform", platform)
    with pytest.raises(StoreTroubleError) as caught:
        FolderStore.open(url)
    assert ("macOS guards this folder: allow" in str(caught.value)) == guarded
