"""Ids of settings: equal settings have equal ids, on every revision that knows them."""

import hashlib
from typing import Any

import msgspec
from msgspec import Struct


def digest_of(value: object) -> str:
    """sha256, in hex, of a value's canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def settings_id(settings: Struct, added: frozenset[str]) -> str:
    """Twelve hex digits that name these settings.

    Args:
        settings: a frozen struct.
        added: names of fields that came after the first release. Each has as its default what folders
            implied that were made without it, and is left out of the digest while it holds that value: so
            ids stay what they were.
    """
    fields: dict[str, Any] = msgspec.to_builtins(settings)
    defaults = {
        field.name: msgspec.to_builtins(field.default)
        for field in msgspec.structs.fields(settings)
        if field.name in added
    }
    return digest_of({name: value for name, value in fields.items() if defaults.get(name, ...) != value})[:12]
