"""Canaries compared: each machine that joins a run leaves its answer, and the majority is right.

One answer never outvotes machines that agree, whoever wrote it. What stands in Redis may be old, damaged or
forged: an answer counts only while its worker is there, or once it has finished a task of the run.
"""

import hashlib
import logging
import math
import re
from datetime import UTC, datetime
from typing import Annotated, cast

import msgspec
import numpy as np
from msgspec import Meta, Struct
from redis import Redis

from shared.decoding import decode_or_none
from shared.errors import RunMismatchError
from shared.models import Precision
from shared.printable import printable
from shared.runs import Digest, RunSettings

MAX_VALUES = 256
MAX_VOTES = 1000
KEEP_SECONDS = 30 * 24 * 3600

TOLERANCES: dict[Precision, float] = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-2}
"""Relative L2 difference that is no reason to worry, by precision; see docs/reliability.md."""

logger = logging.getLogger("bitfleet.worker")

Text = Annotated[str, Meta(max_length=200)]
_WORKER = re.compile(r"[A-Za-z0-9_-]{1,200}")


class Canary(Struct, frozen=True, kw_only=True):
    """What one worker measured."""

    fingerprint: Digest
    host: Text
    worker: Text
    versions: dict[Text, Text]
    output: Annotated[list[float], Meta(min_length=1, max_length=MAX_VALUES)]
    """Of the guided velocity, evenly chosen."""
    at: Text = ""
    """When the machine joined, in UTC, ISO 8601. Of as many on either side, those who joined first stay."""
    worked: bool = False
    """Whether the machine has finished a task of the run."""

    @property
    def voter(self) -> str:
        """Who votes: a machine with its software and its files, not each of its processes."""
        parts = [self.host, self.fingerprint, sorted(self.versions.items())]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]


_decoder = msgspec.json.Decoder(Canary)


def compare_with_others(
    connection: Redis, run: RunSettings, canary: Canary, tolerance: float | None = None
) -> float:
    """Leave this machine's canary, and compare it with those of the others that work on this run.

    Args:
        connection: the Redis in which the canaries are.
        run: the run.
        canary: what this machine measured.
        tolerance: replaces the one of the run's precision.

    Returns:
        The largest relative L2 difference to a machine that agrees; 0 without one.

    Raises:
        RunMismatchError: more machines agree on another answer, or other files; or as many, and they were
            there first; or the numbers are not finite.
    """
    _require_finite(run, canary)
    limit = TOLERANCES[run.precision] if tolerance is None else tolerance
    canary = _vote(connection, run, canary, limit)
    others = [other for other in _read(connection, run).values() if other.voter != canary.voter]
    agreeing = [other for other in others if _agree(canary, other, limit)]
    against = [other for other in others if not _agree(canary, other, limit) and _counts(connection, other)]
    side = max((_side_of(other, against, limit) for other in against), key=_weight, default=[])
    ours = [canary, *(other for other in agreeing if _counts(connection, other))]
    if _weight(side) > _weight(ours):
        raise RunMismatchError(_why_not(run, canary, side, limit))
    for other in against:
        logger.warning(
            "run %s: %s (%s) computes otherwise than this machine and %d more that agree with it",
            run.id,
            printable(other.host),
            _described(other),
            len(ours) - 1,
        )
    return max((_difference(canary, other) for other in agreeing), default=0.0)


def note_work(connection: Redis, run: RunSettings, canary: Canary) -> None:
    """Note that this machine has finished a task of the run: from now on its answer counts for good."""
    votes = _read(connection, run)
    vote = votes.get(canary.voter, canary)
    _write(connection, run, msgspec.structs.replace(vote, worked=True))


def _vote(connection: Redis, run: RunSettings, canary: Canary, limit: float) -> Canary:
    """Write this machine's vote; one that it left before and still agrees with keeps its time."""
    before = _read(connection, run).get(canary.voter)
    canary = msgspec.structs.replace(canary, at=canary.at or datetime.now(UTC).isoformat())
    if before is not None and _agree(before, canary, limit):
        canary = msgspec.structs.replace(canary, at=before.at, worked=before.worked)
    _write(connection, run, canary)
    return canary


def _write(connection: Redis, run: RunSettings, canary: Canary) -> None:
    connection.hset(_key(run), canary.voter, cast(str, msgspec.json.encode(canary)))
    connection.expire(_key(run), KEEP_SECONDS)


def _read(connection: Redis, run: RunSettings) -> dict[str, Canary]:
    """Return the votes by voter, without what is none."""
    if connection.hlen(_key(run)) > MAX_VOTES:
        logger.warning("%s held more than %d answers: it is reset", _key(run), MAX_VOTES)
        connection.delete(_key(run))
    found = cast(dict[bytes, bytes], connection.hgetall(_key(run)))
    canaries = (decode_or_none(_decoder, value) for value in found.values())
    return {
        canary.voter: canary
        for canary in canaries
        if canary is not None and all(map(math.isfinite, canary.output))
    }


def _counts(connection: Redis, canary: Canary) -> bool:
    alive = _WORKER.fullmatch(canary.worker) and connection.exists(f"rq:worker:{canary.worker}")
    return canary.worked or bool(alive)


def _side_of(canary: Canary, others: list[Canary], limit: float) -> list[Canary]:
    return [other for other in others if _agree(canary, other, limit)]


def _weight(side: list[Canary]) -> tuple[int, list[int]]:
    """Compare by number; of as many, the side whose first machine joined earlier weighs more."""
    first = min((canary.at for canary in side), default="")
    return len(side), [-ord(letter) for letter in first]


def _agree(one: Canary, other: Canary, limit: float) -> bool:
    return one.fingerprint == other.fingerprint and _difference(one, other) <= limit


def _difference(one: Canary, other: Canary) -> float:
    """Return the L2 difference relative to `other`."""
    value, reference = np.array(one.output), np.array(other.output)
    if value.shape != reference.shape:
        return math.inf
    difference, length = float(np.linalg.norm(value - reference)), float(np.linalg.norm(reference))
    if not difference:
        return 0.0
    return difference / length if length else math.inf


def _require_finite(run: RunSettings, canary: Canary) -> None:
    """Before anything is compared: NaN differs from itself, and no other machine is to be held against it."""
    lost = sum(not math.isfinite(value) for value in canary.output)
    if lost:
        raise RunMismatchError(
            f"{run.model} in {run.precision} is not finite on this machine ({_described(canary)}): {lost} of "
            f"{len(canary.output)} values of a test input. If no machine does better, the model's files or "
            "this precision are at fault; else install the same mlx as on the machines that do"
        )


def _why_not(run: RunSettings, canary: Canary, side: list[Canary], limit: float) -> str:
    first = min(side, key=lambda other: other.at)
    names = printable(", ".join(sorted({other.host for other in side})))
    if first.fingerprint != canary.fingerprint:
        return (
            f"this machine's files of {run.model} (fingerprint {canary.fingerprint[:12]}) are not those of "
            f"{names} ({first.fingerprint[:12]}), which joined run {run.id} before: "
            "delete the cached download on the machine that has the wrong ones"
        )
    return (
        f"this machine ({_described(canary)}) computes otherwise than {names} ({_described(first)}), which "
        f"joined run {run.id} before: relative difference {_difference(canary, first):.2g}, tolerance "
        f"{limit:g}. Install the same mlx on both; if {names} is the odd one, stop it and "
        f"delete {_key(run)} in Redis"
    )


def _described(canary: Canary) -> str:
    return printable(", ".join(f"{name} {canary.versions.get(name, '?')}" for name in ("mlx", "platform")))


def _key(run: RunSettings) -> str:
    return f"bitfleet:canary:{run.id}"
