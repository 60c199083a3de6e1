"""How much memory an engine may take, and how it spends it: samples a pass, and where states are kept."""

import os
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

MAX_MICRO_BATCH = 8
"""More samples a pass make no machine faster, and a worker asks for news only between passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What fits into a memory limit."""

    micro_batch: int
    """Samples a forward pass."""
    keep_in_memory: bool
    """Whether the states of all samples fit; else they go to files."""


def default_memory_limit() -> int:
    """Bytes: 80% of what Metal recommends, else half of the machine's memory."""
    if mx.metal.is_available():
        return int(0.8 * int(mx.device_info()["max_recommended_working_set_size"]))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def spare_memory(mmdit: Any, memory_limit: int | None) -> int:
    """Bytes of the limit (None: the default one) that the weights leave; may be negative."""
    parameters: Any = tree_flatten(mmdit.parameters())
    weights: int = sum(value.nbytes for _, value in parameters)
    limit = default_memory_limit() if memory_limit is None else memory_limit
    # Other parts of the pipeline are in memory too, and weights not read yet soon will be.
    return limit - max(weights, mx.get_active_memory())


def plan_memory(
    mmdit: Any, *, samples: int, rows: int, tokens: int, itemsize: int, memory_limit: int | None
) -> MemoryPlan:
    """Divide the limit among weights, kept states and the pass under way.

    Args:
        mmdit: DiffusionKit's transformer.
        samples: how many are kept.
        rows: of a sample: 2 with CFG.
        tokens: of a row, image and text together.
        itemsize: bytes of an activation.
        memory_limit: bytes; None for `default_memory_limit()`.
    """
    config = mmdit.config
    # A kept state is at most the tokens, their attention output and, in unified blocks, a copy between.
    kept = samples * rows * tokens * config.hidden_size * itemsize * (3 if config.depth_unified else 2)
    free = spare_memory(mmdit, memory_limit)
    keep_in_memory = kept <= free // 2
    if keep_in_memory:
        free -= kept
    # Of a block, at once: state, modulated state, q, k, v, attention, and an MLP four times as wide, twice.
    working = rows * tokens * config.hidden_size * itemsize * (8 + 2 * config.mlp_ratio)
    if not mx.metal.is_available():
        # Only Metal's attention never holds the scores.
        working += 2 * rows * config.num_heads * tokens**2 * itemsize
    return MemoryPlan(
        micro_batch=min(max(free // working, 1), MAX_MICRO_BATCH, samples),
        keep_in_memory=keep_in_memory,
    )


def probes_at_once(mmdit: Any, *, rows: int, tokens: int, largest_block: int, spare_bytes: int) -> int:
    """How many probes of a sketch go back through a block together.

    Args:
        mmdit: DiffusionKit's transformer.
        rows: of a sample: 2 with CFG.
        tokens: of a row, image and text together.
        largest_block: weights of the largest block.
        spare_bytes: what the backward pass may take.
    """
    hidden: int = mmdit.config.hidden_size
    heads: int = mmdit.config.num_heads
    state = 4 * rows * tokens * hidden
    # Differentiated attention holds its scores on every machine. The counts were measured.
    scores = 4 * rows * heads * tokens**2
    forward, probe = 24 * state + 2 * scores, 4 * largest_block + 8 * state + 3 * scores
    return max(1, (spare_bytes - forward) // probe)
