"""Folder stores behind a network keep the contract: SFTP on a server in this process, and on OpenSSH where
it is installed; S3 on moto's server."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from shared.errors import StoreError, WrongStoreError
from shared.stores.filesystems import open_filesystem
from shared.stores.folder_store import FolderStore
from shared.stores.store import ShardStore
from tests.remote_servers import OpenSsh, S3Server, find_sshd
from tests.sftp_server import InProcessSftp
from tests.store_contract import RECORD, SHARD, TASK
from tests.tasks import image_task, record_of
from tests.test_folder_store import FolderContract, shards_on

SSH_SERVERS = [InProcessSftp, *([OpenSsh] if find_sshd() else [])]


@pytest.fixture(scope="module", params=SSH_SERVERS)
def ssh_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InProcessSftp | OpenSsh]:
    with request.param(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture
def ssh(ssh_server: InProcessSftp | OpenSsh, monkeypatch: pytest.MonkeyPatch) -> InProcessSftp | OpenSsh:
    monkeypatch.setenv("HOME", str(ssh_server.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    return ssh_server


class TestSftpStore(FolderContract):
    @pytest.fixture
    def url(self, ssh: InProcessSftp | OpenSsh, tmp_path: Path) -> str:
        return f"{ssh.address}{tmp_path}/store"

    @pytest.fixture
    def store(self, url: str) -> FolderStore:
        return FolderStore.open(url, create=True)

    @pytest.fixture
    def second(self, store: FolderStore, url: str) -> ShardStore:
        return FolderStore.open(url)

    def test_the_files_are_there(self, store: FolderStore, tmp_path: Path) -> None:
        store.put(RECORD, SHARD)
        assert (tmp_path / "store" / TASK.namespace / f"{TASK.id}.json").is_file()
        assert not list((tmp_path / "store").rglob("*.tmp"))

    def test_a_cut_connection_is_made_again(self, ssh: InProcessSftp | OpenSsh, store: FolderStore) -> None:
        store.put(RECORD, SHARD)
        ssh.kill()
        with pytest.raises(StoreError, match=r"127\.0\.0\.1"):
            store.has_record(TASK.namespace, TASK.id)
        ssh.start()
        # A worker's client outlives the server's restart, a Mac's sleep, and lost Wi-Fi.
        other = image_task(1)
        assert store.put(record_of(other, SHARD), SHARD) == "stored"
        assert store.record_ids(TASK.namespace) == {TASK.id, other.id}

    def test_an_unknown_server_is_not_talked_to(self, ssh: InProcessSftp | OpenSsh, url: str) -> None:
        try:
            ssh.trust(None)
            with pytest.raises(StoreError, match=r"not in .*known_hosts"):
                FolderStore.open(url, create=True)
            # And one that pretends to be the known one.
            ssh.trust(False)
            with pytest.raises(StoreError, match="known_hosts"):
                FolderStore.open(url, create=True)
        finally:
            ssh.trust(True)

    def test_a_key_that_is_not_let_in(self, ssh: InProcessSftp | OpenSsh, url: str) -> None:
        try:
            ssh.let_in(False)
            with pytest.raises(StoreError, match="Authentication failed"):
                FolderStore.open(url)
        finally:
            ssh.let_in(True)

    def test_no_server(self, tmp_path: Path, ssh: InProcessSftp | OpenSsh) -> None:
        with pytest.raises(StoreError, match=r"sftp://127\.0\.0\.1:1"):
            FolderStore.open(f"sftp://127.0.0.1:1{tmp_path}")

    def test_a_folder_of_somebody_else(self, ssh: InProcessSftp | OpenSsh) -> None:
        with pytest.raises(StoreError):
            FolderStore.open(f"{ssh.address}/proc/store", create=True)


def forget_s3() -> None:
    """fsspec keeps instances: one of another endpoint, or without credentials, must not be used again."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    """An S3 server, and clients that talk to it. Their session takes a second to make: one for all tests."""
    with S3Server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "tests-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        forget_s3()
        yield
        forget_s3()


@pytest.fixture
def bucket(s3: None) -> str:
    name = f"bucket-{uuid4().hex[:12]}"
    open_filesystem(f"s3://{name}", name)[0].mkdir(name)
    return name


class TestS3Store(FolderContract):
    @pytest.fixture
    def url(self, bucket: str) -> str:
        return f"s3://{bucket}/runs/first"

    @pytest.fixture
    def store(self, url: str) -> FolderStore:
        return FolderStore.open(url, create=True)

    @pytest.fixture
    def second(self, store: FolderStore, url: str) -> ShardStore:
        return FolderStore.open(url)

    def test_a_record_is_seen_as_soon_as_it_is_there(self, store: FolderStore, url: str) -> None:
        # Listings are kept by s3fs: an old one must not hide what another machine wrote.
        other = FolderStore.open(url)
        for index in range(3):
            task = image_task(index)
            assert not store.has_record(task.namespace, task.id)
            assert task.id not in store.record_ids(task.namespace)
            other.put(record_of(task, SHARD), SHARD)
            assert store.has_record(task.namespace, task.id)
            assert task.id in store.record_ids(task.namespace)
            assert store.put(record_of(task, b"late"), b"late") == "exists"

    def test_a_bucket_that_is_not_there(self, bucket: str) -> None:
        with pytest.raises((WrongStoreError, StoreError), match="s3://nosuch-bucket/x"):
            FolderStore.open("s3://nosuch-bucket/x")

    def test_a_shard_of_some_megabytes(self, store: FolderStore) -> None:
        shard = bytes(range(256)) * 40_000
        record = record_of(TASK, shard)
        store.put(record, shard)
        assert store.shard(record) == shard
        assert len(shards_on(store)) == 2


def test_no_server_behind_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'bitfleet[s3]'")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests-secret")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_s3()
    try:
        with pytest.raises(StoreError, match="s3://bucket/x") as caught:
            FolderStore.open("s3://bucket/x")
    finally:
        forget_s3()
    assert "tests-secret" not in str(caught.value)


def test_stores_of_two_places_are_told_apart(bucket: str) -> None:
    first = FolderStore.open(f"s3://{bucket}/one", create=True)
    second = FolderStore.open(f"s3://{bucket}/two", create=True)
    assert first.id != second.id


@pytest.mark.parametrize(("url", "extra"), [("s3://bucket/x", "s3"), ("sftp://host/x", "sftp")])
def test_a_missing_package_is_one_line_with_the_command(url: str, extra: str) -> None:
    code = (
        "import sys\n"
        "for name in ('s3fs', 'paramiko'): sys.modules[name] = None\n"
        "from shared.stores.folder_store import FolderStore\n"
        "from shared.errors import StoreError\n"
        "try: FolderStore.open(sys.argv[1])\n"
        "except StoreError as error: sys.stdout.write(str(error))\n"
    )
    root = str(Path(__file__).parent.parent)
    said = subprocess.run(
        [sys.executable, "-c", code, url], capture_output=True, text=True, cwd=root, check=True
    ).stdout
    assert f"pip install 'bitfleet[{extra}]'" in said
    assert "\n" not in said
