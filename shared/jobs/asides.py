"""What machines have set aside, as it stands in Redis: kinds of tasks left to others for a while."""

from dataclasses import dataclass
from typing import Annotated, cast

import msgspec
from msgspec import Meta, Struct
from redis import Redis
from redis.exceptions import ResponseError

from shared.decoding import decode_or_none
from shared.kinds.registry import KINDS
from shared.printable import printable

ASIDE_SECONDS = 600.0
"""For how long, at most. Then it is tried again: files may have come, memory may be free."""


class Aside(Struct, frozen=True, kw_only=True):
    """One kind of tasks that one machine can't do."""

    host: Annotated[str, Meta(max_length=200)]
    reason: Annotated[str, Meta(max_length=2000)]
    until: float
    """Seconds since 1970, by Redis' clock."""


_decoder = msgspec.json.Decoder(Aside)


@dataclass(frozen=True, slots=True)
class Entry:
    """An aside, who wrote it, and of what."""

    start_id: str
    """Of the `worker start`: another one may have other files, or more memory."""
    kind: str
    aside: Aside


def kind_of_job(job_id: str) -> str:
    """Return the beginning of a job's id, up to its group: `cal-0123456789ab-`."""
    return "-".join(job_id.split("-")[:2]) + "-"


def describe_kind(kind: str) -> str:
    """Return the beginning of a job's id in words: `images of 0123456789ab`."""
    name, _, group = kind.rstrip("-").partition("-")
    tasks = next((each.tasks for each in KINDS.values() if each.prefix == name), "jobs")
    return f"{tasks} of {group}"


def asides_key(queue_name: str) -> str:
    """Return the key of the hash that holds them."""
    return f"bitfleet:aside:{queue_name}"


def read_asides(connection: Redis, queue_name: str, now: float) -> list[Entry]:
    """Return those that hold at `now`, by Redis' clock. What does not fit is left out."""
    try:
        lines = cast(dict[bytes, bytes], connection.hgetall(asides_key(queue_name)))
    except ResponseError:
        # No hash, so none of ours.
        return []
    return [entry for name, line in lines.items() if (entry := _decode(name, line, now))]


def _decode(name: bytes, line: bytes, now: float) -> Entry | None:
    start_id, _, kind = name.decode("utf-8", "replace").partition(":")
    aside = decode_or_none(_decoder, line)
    # Nothing that stands there may send a machine home for longer than its own word would.
    if aside is None or not now < aside.until <= now + ASIDE_SECONDS + 1 or kind != kind_of_job(kind):
        return None
    # It will be shown, and a terminal obeys what it is shown.
    shown = msgspec.structs.replace(aside, host=printable(aside.host), reason=printable(aside.reason))
    return Entry(start_id, kind, shown)
