"""The shard store: where finished tasks leave their shards until they are collected.

Bytes in, bytes out, the record last. Two stores keep this contract: the Redis relay (relay_store),
which needs nothing but the Redis, and a folder behind any fsspec URL (folder_store).
"""

from abc import ABC, abstractmethod
from typing import Literal

from shared.stores.records import Record

PutOutcome = Literal["stored", "exists", "full"]


class ShardStore(ABC):
    """Shards and records by group (a run's or a sensitivity's id) and task id; blobs by their sha256."""

    id: str
    """Names the store itself, so that an unmounted share or another bucket is told apart from it."""
    label: str
    """For people; never holds a password."""

    @abstractmethod
    def put(self, record: Record, shard: bytes) -> PutOutcome:
        """Keep a shard, then its record. The first record of a task counts: "exists" keeps the old one.

        "full" keeps nothing: the caller waits until something was collected.

        Raises:
            StoreError: it could not be written; nothing is left that looks done.
        """

    @abstractmethod
    def has_record(self, namespace: str, task_id: str) -> bool:
        """Whether a task has a record, readable or not."""

    @abstractmethod
    def record_ids(self, namespace: str) -> set[str]:
        """Task ids that have a record, readable or not."""

    @abstractmethod
    def record(self, namespace: str, task_id: str) -> Record:
        """Return a task's record.

        Raises:
            ShardCorruptError: there is none, or it can't be read.
        """

    @abstractmethod
    def shard(self, record: Record) -> bytes:
        """Return a task's shard, compared with its record.

        Raises:
            ShardCorruptError: missing, truncated or altered.
        """

    @abstractmethod
    def discard(self, namespace: str, task_id: str) -> None:
        """Forget record and shard; the record goes first. Nothing happens when there is none."""

    @abstractmethod
    def put_blob(self, digest: str, data: bytes) -> None:
        """Keep something that workers need, under the sha256 of its bytes."""

    @abstractmethod
    def has_blob(self, digest: str) -> bool:
        """Whether there is such a blob, altered or not."""

    @abstractmethod
    def blob(self, digest: str) -> bytes:
        """Return a blob, compared with its name.

        Raises:
            StoreError: there is none.
            ShardCorruptError: it was altered.
        """

    @abstractmethod
    def discard_blob(self, digest: str) -> None:
        """Forget a blob. Nothing happens when there is none."""
