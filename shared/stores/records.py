"""A record: the small JSON that says a task is done, by whom, with what, and how its shard looks."""

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shared.decoding import decode
from shared.errors import ShardCorruptError
from shared.kinds.registry import AnyTask
from shared.runs import PROTOCOL, Digest

MAX_SHARD_BYTES = 512 * 1024 * 1024
"""Redis holds no longer string, and no image of a known model needs more."""


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Written after its shard: a record's existence means done."""

    task: AnyTask
    sha256: Digest
    size: Annotated[int, Meta(ge=0, le=MAX_SHARD_BYTES)]
    fingerprint: Digest
    """Of the model's files, as the worker had them."""
    versions: dict[str, str]
    host: str
    worker: str
    seconds: float
    finished_at: str
    """UTC, ISO 8601."""
    protocol: int = PROTOCOL

    @property
    def id(self) -> str:
        """The task's id."""
        return self.task.id

    def check(self, shard: bytes) -> None:
        """Compare a shard with this record.

        Raises:
            ShardCorruptError: size or sha256 differ.
        """
        if len(shard) != self.size:
            raise ShardCorruptError(
                f"shard {self.id} ({self.task.label}) has {len(shard)} bytes, its record says {self.size}"
            )
        if hashlib.sha256(shard).hexdigest() != self.sha256:
            raise ShardCorruptError(f"shard {self.id} ({self.task.label}) differs from its record's sha256")


_decoder = msgspec.json.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """JSON of a record."""
    return msgspec.json.encode(record)


def decode_record(data: bytes) -> Record:
    """Read back a record.

    Raises:
        ShardCorruptError: not a record of this protocol.
    """
    return decode(_decoder, data, ShardCorruptError, "not a record this revision knows")
