"""Ids of settings: equal settings have equal ids in every revision."""

import hashlib
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct


def digest_of(value: object) -> str:
    """Return the sha256, in hex, of a value's JSON with sorted keys."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def settings_id(settings: Struct, added: frozenset[str]) -> str:
    """Return twelve hex digits that identify these settings.

    Args:
        settings: a frozen struct.
        added: names of fields that were added after the first release. The default of such a field is
            what older folders meant without saying it. A field is left out of the digest while it has its
            default, so ids from before it was added stay the same.
    """
    # Encoding is fast. The rest is not, and a pass over a large folder asks for the id of every task.
    return _id_of(msgspec.json.encode(settings), type(settings), added)


@lru_cache(maxsize=1024)
def _id_of(encoded: bytes, kind: type[Struct], added: frozenset[str]) -> str:
    fields: dict[str, Any] = msgspec.json.decode(encoded)
    defaults = {
        field.name: msgspec.to_builtins(field.default)
        for field in msgspec.structs.fields(kind)
        if field.name in added
    }
    return digest_of({name: value for name, value in fields.items() if defaults.get(name, ...) != value})[:12]
