"""How much memory an engine may take, and how it spends it: samples a pass, and where states are kept.

The exact engine and the sketch plan with what they have measured (`pass_memory.py`). Before any weight is
read, and for backward trajectories, it is counted (`shared.costs`). tests/test_memory.py holds the engines to
what is planned here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from shared.costs import Passing, trajectory_bytes
from shared.plan import Choice
from worker.engine.limits import default_memory_limit, require_memory
from worker.engine.pass_memory import PassMemory
from worker.engine.replay import blocks_by_path
from worker.families.family import Family, PassSize

MAX_TOKENS = 8_000
"""Tokens of all rows of a pass, at most. More make no machine faster, and a worker can only stop between
passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """How the exact engine keeps a memory limit."""

    micro_batch: int
    """Samples per forward pass."""
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

    heads_at_once: int
    """Whose attention scores go back together."""
    keep_packed: bool
    """Whether all packed candidates fit; else each is packed anew at each step."""


def spare_memory(transformer: Any, memory_limit: int | None) -> int:
    """Return how many bytes of the limit (None: the default one) the weights leave free.

    Raises:
        MachineTooSmallError: the limit doesn't hold the weights.
    """
    limit = default_memory_limit() if memory_limit is None else memory_limit
    weights = memory_of_weights(transformer)
    require_memory("the model", weights, limit)
    return limit - weights


def memory_of_weights(transformer: Any) -> int:
    """Return the bytes in use before any pass.

    Other parts of the pipeline are in memory too, and weights not read yet soon will be.
    """
    parameters: Any = tree_flatten(transformer.parameters())
    weights: int = sum(value.nbytes for _, value in parameters)
    return max(weights, mx.get_active_memory())


def passing_of(family: Family, size: PassSize, *, rows: int) -> Passing:
    """Return what the memory of a loaded model's passes depends on. Its weights are counted as they are
    stored.
    """
    weights: Any = tree_flatten(family.transformer.parameters())
    return Passing(
        tokens=size.tokens,
        rows=rows,
        width=size.width,
        heads=size.heads,
        blocks=size.blocks,
        mlp_ratio=size.mlp_ratio,
        largest_layer=max(_sizes(family)),
        largest_block=largest_block(family),
        half=any(value.dtype.size == 2 for _, value in weights),
    )


def plan_memory(
    family: Family, one_pass: PassMemory, *, samples: int, memory_limit: int | None
) -> MemoryPlan:
    """Divide the limit among weights, kept states and the pass under way.

    Args:
        family: the loaded model.
        one_pass: what a pass of one sample takes.
        samples: how many are kept.
        memory_limit: bytes; None for `default_memory_limit()`.

    Raises:
        MachineTooSmallError: the limit doesn't hold the weights and one sample's pass.
    """
    limit = default_memory_limit() if memory_limit is None else memory_limit
    # A pass also holds the state that it started from. Before it, a candidate was made.
    working = max(_with_margin(one_pass.working) + one_pass.state, memory_of_a_delta(family))
    weights = memory_of_weights(family.transformer)
    require_memory("the model with one sample's pass", weights + working, limit)
    kept = samples * one_pass.state
    free = limit - weights
    keep_in_memory = kept <= min(free // 2, free - working)
    if keep_in_memory:
        free -= kept
    return MemoryPlan(
        # The part of a pass that doesn't grow with its samples is counted for each of them, to be on the safe
        # side.
        micro_batch=min(free // working, max(1, MAX_TOKENS // one_pass.tokens), samples),
        keep_in_memory=keep_in_memory,
    )


def plan_sketch(
    family: Family, *, states: int, cotangent: int, one_probe: int, probes: int, widths: int, spare_bytes: int
) -> SketchPlan:
    """Divide what the weights leave among states, dW and the probes that go back together; all is float32.

    Args:
        family: the loaded model.
        states: bytes of the states of all blocks.
        cotangent: bytes of the largest of these states: a probe's, between two blocks.
        one_probe: bytes that one probe takes on its way back through a block.
        probes: of a sample, at once or not.
        widths: bit widths of each layer.
        spare_bytes: what the sketch may take.
    """
    # What the probes have come to before and after a block, and a dW while it is made.
    spare = spare_bytes - states - 2 * probes * cotangent - memory_of_a_delta(family)
    probe, deltas = _with_margin(one_probe), 4 * widths * sum(_sizes(family))
    keep_deltas = deltas <= spare - probes * probe
    if keep_deltas:
        spare -= deltas
    return SketchPlan(at_once=max(1, min(spare // probe, probes)), keep_deltas=keep_deltas)


def memory_of_a_delta(family: Family) -> int:
    """Return the bytes in use while the largest layer is quantized: six arrays in float32."""
    return 24 * max(_sizes(family))


def _with_margin(measured: int) -> int:
    """Add a quarter: how far MLX runs ahead, and so how much it holds, differs from pass to pass."""
    return measured * 5 // 4


def largest_block(family: Family) -> int:
    """Return the number of weights of the largest block. Layers in no list of blocks count as one block."""
    of_lists = {path: blocks for path, blocks in family.stages.items() if isinstance(blocks, list)}
    starts = [f"{path}." for path in blocks_by_path(of_lists)]
    by_block: dict[str, int] = {}
    for layer in family.layers:
        block = next((start for start in starts if layer.path.startswith(start)), "others")
        by_block[block] = by_block.get(block, 0) + layer.shape[0] * layer.shape[1]
    return max(by_block.values())


def plan_trajectory(
    family: Family,
    size: PassSize,
    *,
    rows: int,
    candidates: Mapping[str, Sequence[Choice]],
    drawing_bytes: int,
    memory_limit: int | None,
) -> TrajectoryPlan:
    """Divide the limit among weights, one step's pass and packed candidates.

    Args:
        family: the loaded model.
        size: of a row.
        rows: of a sample: 2 with CFG.
        candidates: by layer.
        drawing_bytes: what drawing the next image will take beside the weights; packed candidates stay.
        memory_limit: bytes; None for `default_memory_limit()`.

    Raises:
        MachineTooSmallError: the limit doesn't hold the weights and one step.
    """
    passing = passing_of(family, size, rows=rows)
    limit = default_memory_limit() if memory_limit is None else memory_limit
    weights, step = memory_of_weights(family.transformer), trajectory_bytes(passing)
    require_memory("the model with one step of a backward trajectory", weights + step, limit)
    layers = {layer.path: layer for layer in family.layers}
    # Scales and biases have the dtype of the weights.
    scale_bytes = 2 if passing.half else 4
    packed = sum(
        choice.stored_bytes(layers[path].shape, scale_bytes)
        for path, choices in candidates.items()
        for choice in choices
        if layers[path].unmeasurable(choice.group_size) is None
    )
    return TrajectoryPlan(
        heads_at_once=passing.heads_at_once(),
        keep_packed=weights + max(step, drawing_bytes) + packed <= limit,
    )


def _sizes(family: Family) -> list[int]:
    return [layer.shape[0] * layer.shape[1] for layer in family.layers]
