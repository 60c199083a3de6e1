"""The canary: a tiny measurement that every worker makes when it joins a run, for others to compare with.

Machines of one run must compute the same: equal files (the fingerprint) and nearly equal numbers. A broken
build of MLX, a chip of other habits or a bad cache shows here, before it gets into anybody's results. The
comparison is in canary_votes. Beside it a pass at the run's size is timed: it tells how fast this machine is
before its first task is done.
"""

import math
import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from shared.layout.npz import Array
from shared.runs import RunSettings
from worker.engine.batches import guided_velocity
from worker.families.family import Family
from worker.service.canary_votes import MAX_VALUES

LATENT_SIZE = 8
TEXT_TOKENS = 8
SIGMA = 0.5
LONG_SECONDS = 5.0
"""Of a pass beside which compiling kernels takes little."""


def time_pass(family: Family, run: RunSettings, text_tokens: int) -> float:
    """Return the seconds of a forward pass of one sample at the run's size, in the model's own precision.

    `text_tokens` are those of a row. A first pass also compiles kernels: a short one is made a second time.
    """
    height, width = run.latent_size
    rows, draw = 2 if run.cfg_weight > 0 else 1, _drawing(family)
    x = mx.repeat(draw(1, height, width, family.channels), rows, axis=0)
    conditioning = family.canary_conditioning(draw, rows, text_tokens)
    mx.eval(x, conditioning)
    seconds = 0.0
    for _ in range(2):
        started = time.monotonic()
        mx.eval(family.velocity(x, mx.full((rows,), SIGMA), conditioning))
        seconds = time.monotonic() - started
        if seconds > LONG_SECONDS:
            break
    return seconds


def measure_canary(family: Family, run: RunSettings) -> Array:
    """Guided velocity, at most `MAX_VALUES` float32 of it, of an input that is the same everywhere.

    One forward pass of an 8x8 latent and 8 tokens of text, with the run's cfg_weight, drawn from seed 0.
    """
    rows = 2 if run.cfg_weight > 0 else 1
    draw = _drawing(family)
    x = mx.repeat(draw(1, LATENT_SIZE, LATENT_SIZE, family.channels), rows, axis=0)
    conditioning = family.canary_conditioning(draw, rows, TEXT_TOKENS)
    velocity = family.velocity(x, mx.full((rows,), SIGMA), conditioning)
    flat = np.array(guided_velocity(velocity, run.cfg_weight)).reshape(-1)
    return flat[:: math.ceil(flat.size / MAX_VALUES)]


def _drawing(family: Family) -> Callable[..., mx.array]:
    """Return what draws arrays of a shape from seed 0."""
    rng = np.random.default_rng(0)
    return lambda *shape: mx.array(rng.standard_normal(shape, dtype=np.float32)).astype(family.dtype)
