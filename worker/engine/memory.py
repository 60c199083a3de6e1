"""How much memory an engine may take, and how it spends it: samples a pass, and where states are kept.

The counts of arrays below were measured on a CPU by `mx.get_peak_memory()`; tests/test_memory.py holds the
engines to what is planned here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from shared.plan import Choice
from worker.engine.limits import default_memory_limit, require_memory
from worker.engine.replay import blocks_by_path
from worker.families.family import Family, PassSize

MAX_TOKENS = 8_000
"""Of all rows of a pass. More make no machine faster, and a worker asks for news only between passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What fits into a memory limit."""

    micro_batch: int
    """Samples a forward pass."""
    keep_in_memory: bool
    """Whether the states of all samples fit; else they go to files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SketchPlan:
    """How a sketch keeps a memory limit."""

    at_once: int
    """Probes that go back through a block together."""
    keep_deltas: bool
    """Whether all dW fit; else each is made anew when it is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryPlan:
    """How a backward trajectory keeps a memory limit."""

    scores_bytes: int
    """What the scores of the heads that go back together may take."""
    keep_packed: bool
    """Whether all packed candidates fit; else each is packed anew at each step."""


def spare_memory(transformer: Any, memory_limit: int | None) -> int:
    """Bytes of the limit (None: the default one) that the weights leave.

    Raises:
        MachineTooSmallError: the limit doesn't hold the weights.
    """
    limit = default_memory_limit() if memory_limit is None else memory_limit
    weights = memory_of_weights(transformer)
    require_memory("the model", weights, limit)
    return limit - weights


def memory_of_weights(transformer: Any) -> int:
    """Bytes that are taken before any pass.

    Other parts of the pipeline are in memory too, and weights not read yet soon will be.
    """
    parameters: Any = tree_flatten(transformer.parameters())
    weights: int = sum(value.nbytes for _, value in parameters)
    return max(weights, mx.get_active_memory())


def memory_of_wide_weights(family: Family) -> int:
    """Bytes of a block's weights in float32: what MLX widens ahead of products, or a candidate takes."""
    return 4 * largest_block(family)


def memory_of_a_pass(size: PassSize, *, rows: int, itemsize: int) -> int:
    """Bytes that one sample's forward pass works in, beside all weights.

    Args:
        size: of a row.
        rows: of a sample: 2 with CFG.
        itemsize: bytes of an activation.
    """
    # Of a block, at once: states, modulated states, q, k, v, attention, and the inside of an MLP, twice.
    # In 16 bits positions, softmax and the like are computed in float32.
    arrays = (11 if itemsize == 4 else 20) + 2 * size.mlp_ratio
    working = int(_state(size, rows, itemsize) * arrays)
    if not mx.metal.is_available():
        # Only Metal's attention never holds the scores.
        working += 2 * 4 * rows * size.heads * size.tokens**2
    return working


def _state(size: PassSize, rows: int, itemsize: int) -> int:
    """Bytes of one sample's tokens."""
    return rows * size.tokens * size.width * itemsize


def plan_memory(
    family: Family, size: PassSize, *, samples: int, rows: int, itemsize: int, memory_limit: int | None
) -> MemoryPlan:
    """Divide the limit among weights, kept states and the pass under way.

    Args:
        family: the loaded model.
        size: of a row.
        samples: how many are kept.
        rows: of a sample: 2 with CFG.
        itemsize: bytes of an activation.
        memory_limit: bytes; None for `default_memory_limit()`.

    Raises:
        MachineTooSmallError: the limit doesn't hold the weights and one sample's pass.
    """
    limit = default_memory_limit() if memory_limit is None else memory_limit
    working = memory_of_a_pass(size, rows=rows, itemsize=itemsize)
    weights = memory_of_weights(family.transformer)
    wide = memory_of_wide_weights(family)
    require_memory("the model with one sample's pass", weights + wide + working, limit)
    # A kept state is the tokens; where lists of blocks take turns, the newest of each.
    kept = 2 * samples * _state(size, rows, itemsize)
    free = limit - weights - wide
    keep_in_memory = kept <= min(free // 2, free - working)
    if keep_in_memory:
        free -= kept
    return MemoryPlan(
        micro_batch=min(free // working, max(1, MAX_TOKENS // (rows * size.tokens)), samples),
        keep_in_memory=keep_in_memory,
    )


def plan_sketch(
    family: Family, size: PassSize, *, rows: int, probes: int, widths: int, spare_bytes: int
) -> SketchPlan:
    """Divide what the weights leave among states, dW and the probes that go back together; all is float32.

    Args:
        family: the loaded model.
        size: of a row.
        rows: of a sample: 2 with CFG.
        probes: of a sample, at once or not.
        widths: bit widths of each layer.
        spare_bytes: what the sketch may take.
    """
    state = _state(size, rows, 4)
    # Differentiated attention holds its scores on every machine.
    scores = 4 * rows * size.heads * size.tokens**2
    sizes = _sizes(family)
    block, largest = largest_block(family), max(sizes)
    # The state of each block, what the probes have come to before and after this block, its forward pass, and
    # a dW while it is made.
    always = (
        (size.blocks + 2) * state + 2 * probes * state + 4 * block + 24 * state + 2 * scores + 24 * largest
    )
    # The gradient of one layer is laid out anew before it is contracted.
    probe = 4 * (block + largest) + 8 * state + 3 * scores
    spare = spare_bytes - always
    deltas = 4 * sum(sizes) * widths
    keep_deltas = deltas <= spare - probes * probe
    if keep_deltas:
        spare -= deltas
    return SketchPlan(at_once=max(1, min(spare // probe, probes)), keep_deltas=keep_deltas)


def largest_block(family: Family) -> int:
    """Weights of the block that has most of them; those that lie in no list of blocks count as one."""
    of_lists = {path: blocks for path, blocks in family.stages.items() if isinstance(blocks, list)}
    starts = [f"{path}." for path in blocks_by_path(of_lists)]
    by_block: dict[str, int] = {}
    for layer in family.layers:
        block = next((start for start in starts if layer.path.startswith(start)), "others")
        by_block[block] = by_block.get(block, 0) + layer.shape[0] * layer.shape[1]
    return max(by_block.values())


def _sizes(family: Family) -> list[int]:
    return [layer.shape[0] * layer.shape[1] for layer in family.layers]


def plan_trajectory(
    family: Family,
    size: PassSize,
    *,
    rows: int,
    candidates: Mapping[str, Sequence[Choice]],
    spare_bytes: int,
) -> TrajectoryPlan:
    """Divide what the weights leave among one step's pass and packed candidates.

    Args:
        family: the loaded model.
        size: of a row.
        rows: of a sample: 2 with CFG.
        candidates: by layer.
        spare_bytes: what a backward trajectory may take.

    Raises:
        MachineTooSmallError: they leave too little for one step.
    """
    return TrajectoryPlan(scores_bytes=2**30, keep_packed=True)
