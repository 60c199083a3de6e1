"""A store in a folder: local, on a mounted share, or anywhere fsspec can reach (s3://, sftp://)."""

import contextlib
import hashlib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

import msgspec

from shared.decoding import decode_or_none
from shared.errors import BitfleetError, ShardCorruptError, StoreError, StoreTroubleError, WrongStoreError
from shared.safe_url import PERCENT_ENCODE, is_readable, safe_url, without_secrets
from shared.stores.filesystems import open_filesystem
from shared.stores.records import MAX_SHARD_BYTES, Record, decode_record, encode_record
from shared.stores.store import PutOutcome, ShardStore, require_portable
from shared.stores.usage import NAMESPACE, Held, Usage

MARKER = "bitfleet-store.json"
MAX_RECORD_BYTES = 64 * 1024

_marker_decoder = msgspec.json.Decoder(dict[str, str])
_GUARDED = re.compile(
    r"/(Documents|Desktop|Downloads|Library/Mobile Documents|Library/CloudStorage)(/|$)|^/Volumes/"
)
_NAME = re.compile(r"[A-Za-z0-9_-]+")


class FolderStore(ShardStore):
    """Each shard's file name holds its sha256, so two attempts never overwrite each other."""

    def __init__(self, filesystem: Any, root: str, url: str, store_id: str) -> None:
        self.id = store_id
        self.label = safe_url(url)
        self._url = url
        self._fs = filesystem
        self._root = root.rstrip("/")

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> "FolderStore":
        """Open the store at `url`. With `create`, a folder that is no store yet becomes one.

        Raises:
            StoreError: this is no fsspec URL, or it can't be reached or written.
            WrongStoreError: there is no store, and `create` is False.
        """
        label = safe_url(url)
        if "://" not in url and "::" not in url and not is_readable(url):
            raise StoreError(
                f"store {label} is neither a folder nor a URL such as s3://BUCKET/FOLDER or "
                f"sftp://USER@HOST/FOLDER; {PERCENT_ENCODE}; begin the path of a folder with /"
            )
        with _explained(url):
            filesystem, root = open_filesystem(url, label)
        marker = f"{root.rstrip('/')}/{MARKER}"
        with _explained(url):
            content = _content(filesystem, marker)
            if content is None:
                if not create:
                    raise WrongStoreError(
                        f"{label} is no shard store (no {MARKER} in it): is the share mounted, and is it "
                        "the --store that the run was enqueued with?"
                    )
                filesystem.makedirs(root, exist_ok=True)
                content = msgspec.json.encode({"store_id": uuid4().hex[:12]})
                cls(filesystem, root, url, "")._write(marker, content)
                content = filesystem.cat_file(marker)
        return cls(filesystem, root, url, _store_id(content, label))

    def put(self, record: Record, shard: bytes) -> PutOutcome:
        require_portable(f"the shard of {record.task.label}", len(shard))
        self._check_marker()
        name = self._record_path(record.task.namespace, record.id)
        with _explained(self._url):
            if self._fs.exists(name):
                return "exists"
            self._write(self._shard_path(record), shard)
            self._write(name, encode_record(record))
        return "stored"

    def has_record(self, namespace: str, task_id: str) -> bool:
        self._check_marker()
        with _explained(self._url):
            return bool(self._fs.exists(self._record_path(namespace, task_id)))

    def record_ids(self, namespace: str) -> set[str]:
        self._check_marker()
        with _explained(self._url):
            names = self._listing(namespace)
        if not names:
            # A share that went away meanwhile looks empty, too.
            self._check_marker()
        stems = (name.rsplit("/", 1)[-1].removesuffix(".json") for name in names if name.endswith(".json"))
        return {stem for stem in stems if _NAME.fullmatch(stem)}

    def record(self, namespace: str, task_id: str) -> Record:
        record = decode_record(self._read(self._record_path(namespace, task_id), MAX_RECORD_BYTES, task_id))
        if record.id != task_id or record.task.namespace != namespace:
            raise ShardCorruptError(f"the record of {task_id} in {self.label} is {record.id}'s")
        return record

    def shard(self, record: Record) -> bytes:
        label = f"{record.id} ({record.task.label})"
        data = self._read(self._shard_path(record), MAX_SHARD_BYTES, label)
        record.check(data)
        return data

    def discard(self, namespace: str, task_id: str) -> None:
        with _explained(self._url):
            self._remove(self._record_path(namespace, task_id))
            # Not with glob, which would misread a bracket in the folder's own name.
            for path in self._listing(namespace):
                name = path.rpartition("/")[2]
                if name.startswith(f"{task_id}.") and name.endswith(".npz"):
                    self._remove(path)

    def put_blob(self, digest: str, data: bytes) -> None:
        require_portable(f"blob {digest[:12]}", len(data))
        self._check_marker()
        with _explained(self._url):
            self._write(self._blob_path(digest), data)

    def has_blob(self, digest: str) -> bool:
        self._check_marker()
        with _explained(self._url):
            return bool(self._fs.exists(self._blob_path(digest)))

    def missing_blobs(self, digests: Sequence[str]) -> list[str]:
        self._check_marker()
        with _explained(self.label):
            there = {path.rpartition("/")[2] for path in self._listing("blobs")}
        return [digest for digest in digests if self._blob_path(digest).rpartition("/")[2] not in there]

    def blob(self, digest: str) -> bytes:
        self._check_marker()
        path = self._blob_path(digest)
        with _explained(self._url):
            if not self._fs.exists(path):
                raise StoreTroubleError(
                    f"{self.label} has no blob {digest[:12]}; `producer collect` puts it there again"
                )
            data: bytes = self._fs.cat_file(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ShardCorruptError(f"blob {digest[:12]} in {self.label} was altered")
        return data

    def discard_blob(self, digest: str) -> None:
        with _explained(self._url):
            self._remove(self._blob_path(digest))

    def usage(self, namespaces: Iterable[str] = ()) -> Usage:
        self._check_marker()
        usage = Usage()
        with _explained(self._url):
            self._fs.invalidate_cache()
            found = self._fs.find(self._root, maxdepth=2, detail=True)
        for path, info in found.items():
            folder, _, name = path.rpartition("/")
            namespace, size = folder.rpartition("/")[2], int(info["size"] or 0)
            if namespace == "blobs" and name.endswith(".npz"):
                usage.blobs[name.removesuffix(".npz")] = size
            elif _is_of(namespace, name):
                before = usage.namespaces.get(namespace, Held(records=0, size=0))
                records = before.records + name.endswith(".json")
                usage.namespaces[namespace] = Held(records=records, size=before.size + size)
        return usage

    def discard_namespace(self, namespace: str) -> None:
        self._check_marker()
        with _explained(self._url):
            ours = [path for path in self._listing(namespace) if _is_of(namespace, path.rpartition("/")[2])]
            # Records first: a shard without one is nobody's.
            for path in sorted(ours, key=lambda path: not path.endswith(".json")):
                self._remove(path)
            with contextlib.suppress(OSError, NotImplementedError):
                self._fs.rmdir(f"{self._root}/{_safe(namespace)}")

    def _check_marker(self) -> None:
        """Check that this is still the same store, and not an unmounted share or another one."""
        try:
            content = self._marker()
        except StoreTroubleError:
            # The connection may have died while this machine slept, so connect again.
            with _explained(self._url):
                self._fs, _ = open_filesystem(self._url, self.label)
            content = self._marker()
        if _store_id(content, self.label) != self.id:
            raise WrongStoreError(f"{self.label} is another store now: is the right share mounted?")

    def _marker(self) -> bytes:
        with _explained(self._url):
            return _content(self._fs, f"{self._root}/{MARKER}") or b""

    def _write(self, path: str, data: bytes) -> None:
        """Write a temporary file and rename it. Object stores write whole objects in any case."""
        folder, _, name = path.rpartition("/")
        self._fs.makedirs(folder, exist_ok=True)
        if "s3" in _protocols(self._fs) or "memory" in _protocols(self._fs):
            self._fs.pipe_file(path, data)
            return
        temporary = f"{folder}/.{name}.{uuid4().hex}.tmp"
        try:
            self._fs.pipe_file(temporary, data)
            self._fs.mv(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self._remove(temporary)
            raise

    def _listing(self, namespace: str) -> list[str]:
        folder = f"{self._root}/{_safe(namespace)}"
        # Other machines may have written there since.
        self._fs.invalidate_cache()
        return list(self._fs.ls(folder, detail=False)) if self._fs.isdir(folder) else []

    def _read(self, path: str, limit: int, label: str) -> bytes:
        with _explained(self._url, path):
            try:
                size = self._fs.info(path)["size"]
                if size > limit:
                    raise ShardCorruptError(
                        f"{label} in {self.label} has {size} bytes; at most {limit} belong"
                    )
                data: bytes = self._fs.cat_file(path)
            except FileNotFoundError:
                # It is not the file that is missing, if the share is.
                self._check_marker()
                raise ShardCorruptError(f"{label} is missing in {self.label}") from None
        return data

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def _record_path(self, namespace: str, task_id: str) -> str:
        return f"{self._root}/{_safe(namespace)}/{_safe(task_id)}.json"

    def _shard_path(self, record: Record) -> str:
        return f"{self._root}/{_safe(record.task.namespace)}/{_safe(record.id)}.{record.sha256[:16]}.npz"

    def _blob_path(self, digest: str) -> str:
        return f"{self._root}/blobs/{_safe(digest)}.npz"


def _is_of(namespace: str, name: str) -> bool:
    """Return whether a file is one of ours: it is named by a task, and that by its namespace."""
    return bool(NAMESPACE.fullmatch(namespace)) and f"-{namespace}-" in name


def _content(filesystem: Any, path: str) -> bytes | None:
    # Not exists(): it also says no when the network fails, and a new marker would replace the old one.
    try:
        content: bytes = filesystem.cat_file(path)
    except FileNotFoundError:
        return None
    return content


def _store_id(marker: bytes, label: str) -> str:
    content = decode_or_none(_marker_decoder, marker) or {}
    if "store_id" not in content:
        raise WrongStoreError(f"{label} has no readable {MARKER}: is the right share mounted?")
    return _safe(content["store_id"])


def _safe(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise StoreError(f"{name!r} can't be a name in a store")
    return name


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _cure(url: str, error: Exception) -> str:
    if not is_readable(url):
        return f"; {PERCENT_ENCODE}"
    # macOS asks the user before a program may read these; nobody may be there to be asked.
    if sys.platform == "darwin" and isinstance(error, PermissionError) and _GUARDED.search(url):
        return (
            "; macOS guards this folder: allow this terminal under System Settings, Privacy & Security, "
            "Files and Folders (or Full Disk Access), or take a folder elsewhere"
        )
    return ""


@contextlib.contextmanager
def _explained(url: str, path: str | None = None) -> Any:
    """Turn all errors into one line that names the store, and the file if given. No password is in it."""
    try:
        yield
    except BitfleetError:
        raise
    except Exception as error:
        said = str(getattr(error, "strerror", None) or error)
        reason = without_secrets(said, url) or type(error).__name__
        store = f"store {safe_url(url)}"
        what = f"{without_secrets(path, url)} in {store} can't be read" if path else f"{store} can't be used"
        cure = _cure(url, error)
        trouble = StoreTroubleError(f"{what}: {reason}{cure}")
        if without_secrets(str(error), url) != str(error):
            # A traceback would tell all that the library said.
            raise trouble from None
        raise trouble from error
