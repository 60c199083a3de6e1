"""A record: a small JSON file that says that a task is done, who did it, and which shard it left."""

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shared.decoding import decode
from shared.errors import ShardCorruptError
from shared.kinds.registry import AnyTask
from shared.runs import PROTOCOL, Digest

MAX_SHARD_BYTES = 512 * 1024 * 1024
"""The longest string that Redis can hold. Shards of older revisions may be so long; new ones may not, see
`shared.stores.store.MAX_PORTABLE_BYTES`."""


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Written after its shard: a task with a record is done."""

    task: AnyTask
    sha256: Digest
    size: Annotated[int, Meta(ge=0, le=MAX_SHARD_BYTES)]
    fingerprint: Digest
    """Fingerprint of the model files that the worker used."""
    versions: dict[str, str]
    host: str
    worker: str
    seconds: float
    finished_at: str
    """Time in UTC, as ISO 8601."""
    protocol: int = PROTOCOL

    @property
    def id(self) -> str:
        """The task's id."""
        return self.task.id

    def check(self, shard: bytes) -> None:
        """Check that a shard is the one that this record describes.

        Raises:
            ShardCorruptError: its size or its sha256 is another.
        """
        if len(shard) != self.size:
            raise ShardCorruptError(
                f"shard {self.id} ({self.task.label}) has {len(shard)} bytes, its record says {self.size}"
            )
        if hashlib.sha256(shard).hexdigest() != self.sha256:
            raise ShardCorruptError(f"shard {self.id} ({self.task.label}) differs from its record's sha256")


_decoder = msgspec.json.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """Return a record as JSON."""
    return msgspec.json.encode(record)


def decode_record(data: bytes) -> Record:
    """Return the record that `encode_record` wrote.

    Raises:
        ShardCorruptError: this is no record that this revision knows.
    """
    return decode(_decoder, data, ShardCorruptError, "not a record this revision knows")
