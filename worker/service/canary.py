"""The canary: a tiny measurement that every worker makes when it joins a run, compared with the first one's.

Machines of one run must compute the same: equal files (the fingerprint) and nearly equal numbers. A broken
build of MLX, a chip of other habits or a bad cache shows here, before it gets into anybody's results.
"""

import math
from typing import Annotated, cast

import mlx.core as mx
import msgspec
import numpy as np
from msgspec import Meta, Struct
from redis import Redis

from shared.errors import RunMismatchError
from shared.layout.npz import Array
from shared.models import Precision
from shared.runs import Digest, RunSettings
from worker.engine.batches import guided_velocity
from worker.families.family import Family

LATENT_SIZE = 8
TEXT_TOKENS = 8
SIGMA = 0.5
VALUES = 256
KEEP_SECONDS = 30 * 24 * 3600

TOLERANCES: dict[Precision, float] = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-2}
"""Relative L2 difference that is no reason to worry, by precision; see docs/reliability.md."""

Text = Annotated[str, Meta(max_length=200)]


class Canary(Struct, frozen=True, kw_only=True):
    """What one worker measured."""

    fingerprint: Digest
    host: Text
    worker: Text
    versions: dict[Text, Text]
    output: Annotated[list[float], Meta(min_length=1, max_length=VALUES)]
    """Of the guided velocity, evenly chosen."""


def measure_canary(family: Family, run: RunSettings) -> Array:
    """Guided velocity, at most `VALUES` float32 of it, of an input that is the same everywhere.

    One forward pass of an 8x8 latent and 8 tokens of text, with the run's cfg_weight, drawn from seed 0.
    """
    rows = 2 if run.cfg_weight > 0 else 1
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape, dtype=np.float32)).astype(family.dtype)

    x = mx.repeat(draw(1, LATENT_SIZE, LATENT_SIZE, family.channels), rows, axis=0)
    conditioning = family.canary_conditioning(draw, rows, TEXT_TOKENS)
    velocity = family.velocity(x, mx.full((rows,), SIGMA), conditioning)
    flat = np.array(guided_velocity(velocity, run.cfg_weight)).reshape(-1)
    return flat[:: math.ceil(flat.size / VALUES)]


def compare_with_first(
    connection: Redis, run: RunSettings, canary: Canary, tolerance: float | None = None
) -> float:
    """Relative L2 difference to the first worker's canary of this run; 0 for the first one itself.

    `tolerance` replaces the one of the run's precision.

    Raises:
        RunMismatchError: other files, a difference beyond the tolerance, or numbers that are not finite.
    """
    _require_finite(run, canary)
    key = f"bitfleet:canary:{run.id}"
    connection.set(key, msgspec.json.encode(canary), nx=True, ex=KEEP_SECONDS)
    first = _decode(cast(bytes | None, connection.get(key)))
    if first is None:
        # Wiped in between, or nothing of ours: this worker is the first, then.
        connection.set(key, msgspec.json.encode(canary), ex=KEEP_SECONDS)
        first = canary
    if first.fingerprint != canary.fingerprint:
        raise RunMismatchError(
            f"this machine's files of {run.model} (fingerprint {canary.fingerprint[:12]}) are not those of "
            f"{first.host} ({first.fingerprint[:12]}), which joined run {run.id} first: "
            "delete the cached download on the machine that has the wrong ones"
        )
    difference = _relative_difference(np.array(canary.output), np.array(first.output))
    limit = TOLERANCES[run.precision] if tolerance is None else tolerance
    # Written so that NaN, of a reference of zeros, is beyond it.
    if not difference <= limit:
        raise RunMismatchError(
            f"this machine ({_described(canary)}) computes otherwise than {first.host} "
            f"({_described(first)}), which joined run {run.id} first: relative difference {difference:.2g}, "
            f"tolerance {limit:g}. Install the same mlx on both; if {first.host} is the odd one, stop it and "
            f"delete {key} in Redis"
        )
    return difference


def _require_finite(run: RunSettings, canary: Canary) -> None:
    """Before anything is compared: NaN differs from itself, and no other machine is to be held against it."""
    lost = sum(not math.isfinite(value) for value in canary.output)
    if lost:
        raise RunMismatchError(
            f"{run.model} in {run.precision} is not finite on this machine ({_described(canary)}): {lost} of "
            f"{len(canary.output)} values of a test input. If no machine does better, the model's files or "
            "this precision are at fault; else install the same mlx as on the machines that do"
        )


def _relative_difference(value: Array, reference: Array) -> float:
    if value.shape != reference.shape:
        return math.inf
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def _decode(data: bytes | None) -> Canary | None:
    try:
        return msgspec.json.decode(data or b"", type=Canary)
    except (msgspec.DecodeError, UnicodeError):
        return None


def _described(canary: Canary) -> str:
    return ", ".join(f"{name} {canary.versions.get(name, '?')}" for name in ("mlx", "platform"))
