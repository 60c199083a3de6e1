"""Claims: which folder wants the tasks in Redis and in the store, so that others can tell whose they are.

A folder claims the tasks of a part whenever it enqueues or collects, until all of them are collected. A claim
is a note for people: nothing is kept from anybody by it.
"""

import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, cast

import msgspec
from msgspec import Meta, Struct
from redis import Redis
from redis.exceptions import OutOfMemoryError

from shared.decoding import decode_or_none
from shared.jobs.asides import kind_of_job
from shared.jobs.redis_time import redis_time
from shared.kinds.kind import Task
from shared.runs import Digest, Identifier


class Claim(Struct, frozen=True, kw_only=True):
    """A folder that wants tasks of one kind and namespace."""

    run: Identifier
    model: Annotated[str, Meta(max_length=200)]
    folder: Annotated[str, Meta(max_length=4096)]
    host: Annotated[str, Meta(max_length=200)]
    """The machine on which the command ran, which knows the folder by this path."""
    since: float
    seen: float
    """When it claimed them first, and last: seconds since 1970, by Redis' clock."""
    blobs: tuple[Digest, ...] = ()
    """What the tasks need, apart from parts that such a blob lists."""


_decoder = msgspec.json.Decoder(Claim)


def claims_key(queue_name: str) -> str:
    """Return the key of a queue's claims: a hash by the beginning of the tasks' ids (`sen-0123456789ab-`)."""
    return f"bitfleet:claims:{queue_name}"


def claim(connection: Redis, queue_name: str, tasks: Sequence[Task], folder: Path) -> None:
    """Note that a folder wants tasks. All of them are of one kind and namespace."""
    first, key = tasks[0], claims_key(queue_name)
    kind, now = kind_of_job(first.id), redis_time(connection)
    path = str(folder.absolute())
    before = decode_or_none(_decoder, cast(bytes | None, connection.hget(key, kind)) or b"")
    since = before.since if before and before.folder == path else now
    note = Claim(
        run=first.run.id,
        model=first.run.model,
        folder=path,
        host=socket.gethostname().split(".")[0][:200],
        since=since,
        seen=now,
        blobs=first.blobs,
    )
    # Where there is no room for a note, collecting has to make some.
    with suppress(OutOfMemoryError):
        connection.hset(key, kind, msgspec.json.encode(note))


def unclaim(connection: Redis, queue_name: str, kinds: Sequence[str]) -> None:
    """Take claims back, given by the beginnings of the tasks' ids."""
    if kinds:
        connection.hdel(claims_key(queue_name), *kinds)


def read_claims(connection: Redis, queue_name: str) -> dict[str, Claim]:
    """Return all claims by the beginnings of the tasks' ids. What can't be read is left out."""
    lines = cast(dict[bytes, bytes], connection.hgetall(claims_key(queue_name)))
    return {
        kind: note
        for name, line in lines.items()
        if (note := decode_or_none(_decoder, line)) is not None
        and (kind := name.decode("utf-8", "replace")) == kind_of_job(kind)
    }
