"""The list of a sample set's parts. It is a blob itself, and its digest names the set: see sample_parts."""

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shared.decoding import decode
from shared.errors import ShardCorruptError
from shared.runs import Digest


class SampleIndex(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parts of a sample set."""

    parts: Annotated[tuple[Digest, ...], Meta(min_length=1, max_length=1_000_000)]
    """sha256 of each part's bytes, in the layout's order."""

    def to_bytes(self) -> bytes:
        """Return the index as JSON. Equal lists give equal bytes."""
        return msgspec.json.encode(self)


_decoder = msgspec.json.Decoder(SampleIndex)


def decode_index(data: bytes) -> SampleIndex | None:
    """Return the index that a blob holds; None if the blob is a whole sample set of an older revision.

    Raises:
        ShardCorruptError: it is neither.
    """
    if data.startswith(b"PK"):
        return None
    return decode(_decoder, data, ShardCorruptError, "not a sample set")


def digest_of_bytes(data: bytes) -> str:
    """Return the sha256 in hex, which names a blob."""
    return hashlib.sha256(data).hexdigest()
