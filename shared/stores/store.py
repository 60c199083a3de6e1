"""The store: where shards and records wait until they are collected.

There are two: the relay in Redis (relay_store), and a folder at any fsspec URL (folder_store). Both write
a task's record last.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

from humanfriendly import format_size

from shared.errors import TooLargeError
from shared.stores.records import Record
from shared.stores.usage import Usage

PutOutcome = Literal["stored", "exists", "full"]

MAX_PORTABLE_BYTES = 64 * 1024 * 1024
"""The size of the largest shard or blob. Redis blocks everybody while it takes one in, needs several times
its size, and drops the connection at 512 MB, which would look like an outage and repeat for ever."""


def require_portable(what: str, size: int) -> None:
    """Check the size of something that is to be put into a store.

    Raises:
        TooLargeError: it is larger than `MAX_PORTABLE_BYTES`.
    """
    if size > MAX_PORTABLE_BYTES:
        raise TooLargeError(
            f"{what} has {format_size(size, binary=True)}, and a store takes at most "
            f"{format_size(MAX_PORTABLE_BYTES, binary=True)} at once: ask for smaller images or fewer steps"
        )


class ShardStore(ABC):
    """Keeps shards and records by namespace (a run id or sensitivity id) and task id, and blobs by digest."""

    id: str
    """Identifies the store, so that an unmounted share or another bucket is not mistaken for it."""
    label: str
    """A name for messages, without passwords."""

    @property
    def capacity(self) -> int | None:
        """How many bytes may wait in it at once; None if it sets no limit of its own."""
        return None

    @abstractmethod
    def put(self, record: Record, shard: bytes) -> PutOutcome:
        """Store a shard, then its record.

        Returns:
            "stored"; or "exists" if the task has a record already, which is kept; or "full" if nothing was
            stored and the caller must wait until something is collected.

        Raises:
            TooLargeError: the shard is larger than any store takes. Nothing was stored.
            StoreError: it could not be written. No record is left behind.
        """

    @abstractmethod
    def has_record(self, namespace: str, task_id: str) -> bool:
        """Return whether a task has a record, readable or not."""

    @abstractmethod
    def record_ids(self, namespace: str) -> set[str]:
        """Return the ids of all tasks with a record, readable or not."""

    @abstractmethod
    def record(self, namespace: str, task_id: str) -> Record:
        """Return a task's record.

        Raises:
            ShardCorruptError: there is no record, or it can't be read.
        """

    @abstractmethod
    def shard(self, record: Record) -> bytes:
        """Return a task's shard after checking it against its record.

        Raises:
            ShardCorruptError: it is missing, truncated or altered.
        """

    @abstractmethod
    def discard(self, namespace: str, task_id: str) -> None:
        """Delete a task's record, then its shard. Does nothing if there are none."""

    @abstractmethod
    def put_blob(self, digest: str, data: bytes) -> None:
        """Store data that workers need, under its sha256.

        Raises:
            TooLargeError: it is larger than any store takes.
            StoreFullError: there is no room until something is collected.
        """

    @abstractmethod
    def has_blob(self, digest: str) -> bool:
        """Return whether the blob is there, altered or not."""

    def missing_blobs(self, digests: Sequence[str]) -> list[str]:
        """Return those of these blobs that are not there, in the same order."""
        return [digest for digest in digests if not self.has_blob(digest)]

    @abstractmethod
    def blob(self, digest: str) -> bytes:
        """Return a blob after checking its sha256.

        Raises:
            StoreTroubleError: the blob is missing. The next `producer collect` puts it there again.
            ShardCorruptError: it was altered.
        """

    @abstractmethod
    def discard_blob(self, digest: str) -> None:
        """Delete a blob. Does nothing if it is missing."""

    @abstractmethod
    def usage(self, namespaces: Iterable[str] = ()) -> Usage:
        """Return what the store holds.

        Args:
            namespaces: to look for beside those that the store knows to hold something.
        """

    @abstractmethod
    def discard_namespace(self, namespace: str) -> None:
        """Delete all records and shards of a namespace. Does nothing if there are none."""

    def recount(self, namespaces: Iterable[str] = ()) -> None:
        """Count again what the store holds, if it counts at all."""
