"""Ids of settings: equal settings have equal ids in every revision."""

import hashlib
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
    fields: dict[str, Any] = msgspec.to_builtins(settings)
    defaults = {
        field.name: msgspec.to_builtins(field.default)
        for field in msgspec.structs.fields(settings)
        if field.name in added
    }
    return digest_of({name: value for name, value in fields.items() if defaults.get(name, ...) != value})[:12]
