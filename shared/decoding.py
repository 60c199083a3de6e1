"""Reading JSON that others wrote: a value of the wanted type, or one clear error."""

from typing import TypeVar

import msgspec

from shared.errors import BitfleetError
from shared.printable import printable

Value = TypeVar("Value")

UNDECODABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What msgspec raises; the last one over JSON that is nested too deeply, even in a field that is ignored."""


def decode(
    decoder: msgspec.json.Decoder[Value],
    data: bytes | str,
    error: type[BitfleetError],
    problem: str,
    *,
    remedy: str = "",
) -> Value:
    """Return the decoded value.

    Args:
        decoder: knows the wanted type.
        data: JSON.
        error: raised where `data` is no JSON of that type.
        problem: how the error's message begins; what msgspec says follows it.
        remedy: how the message ends.
    """
    try:
        return decoder.decode(data)
    except UNDECODABLE as reason:
        raise error(f"{problem}: {printable(str(reason))}{remedy}") from None


def decode_or_none(decoder: msgspec.json.Decoder[Value], data: bytes | str) -> Value | None:
    """Return the decoded value, or None where `data` is no JSON of the wanted type."""
    try:
        return decoder.decode(data)
    except UNDECODABLE:
        return None
