"""How much memory an engine may take, and how it spends it: samples a pass, and where states are kept.

The counts of arrays below were measured on a CPU by `mx.get_peak_memory()`; tests/test_memory.py holds the
engines to what is planned here.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from worker.engine.limits import default_memory_limit, require_memory
from worker.model.layers import get_weight, linear_layers

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


def spare_memory(mmdit: Any, memory_limit: int | None) -> int:
    """Bytes of the limit (None: the default one) that the weights leave.

    Raises:
        MachineTooSmallError: the limit doesn't hold the weights.
    """
    limit = default_memory_limit() if memory_limit is None else memory_limit
    weights = memory_of_weights(mmdit)
    require_memory("the model", weights, limit)
    return limit - weights


def memory_of_weights(mmdit: Any) -> int:
    """Bytes that are taken before any pass.

    Other parts of the pipeline are in memory too, and weights not read yet soon will be.
    """
    parameters: Any = tree_flatten(mmdit.parameters())
    weights: int = sum(value.nbytes for _, value in parameters)
    return max(weights, mx.get_active_memory())


def memory_of_wide_weights(mmdit: Any) -> int:
    """Bytes of a block's weights in float32: what MLX widens ahead of products, or a candidate takes."""
    return 4 * largest_block(mmdit)


def memory_of_a_pass(mmdit: Any, *, rows: int, tokens: int, itemsize: int) -> int:
    """Bytes that one sample's forward pass works in, beside all weights.

    Args:
        mmdit: DiffusionKit's transformer.
        rows: of a sample: 2 with CFG.
        tokens: of a row, image and text together.
        itemsize: bytes of an activation.
    """
    config = mmdit.config
    # Of a block, at once: states, modulated states, q, k, v, attention, and an MLP four times as wide, twice.
    # In 16 bits positions, softmax and the like are computed in float32.
    arrays = (11 if itemsize == 4 else 20) + 2 * config.mlp_ratio
    working: int = rows * tokens * config.hidden_size * itemsize * arrays
    if not mx.metal.is_available():
        # Only Metal's attention never holds the scores.
        working += 2 * 4 * rows * config.num_heads * tokens**2
    return working


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

    Raises:
        MachineTooSmallError: the limit doesn't hold the weights and one sample's pass.
    """
    config = mmdit.config
    limit = default_memory_limit() if memory_limit is None else memory_limit
    working = memory_of_a_pass(mmdit, rows=rows, tokens=tokens, itemsize=itemsize)
    weights = memory_of_weights(mmdit)
    wide = memory_of_wide_weights(mmdit)
    require_memory("the model with one sample's pass", weights + wide + working, limit)
    # A kept state is at most the tokens, their attention output and, in unified blocks, a copy between.
    kept = samples * rows * tokens * config.hidden_size * itemsize * (3 if config.depth_unified else 2)
    free = limit - weights - wide
    keep_in_memory = kept <= min(free // 2, free - working)
    if keep_in_memory:
        free -= kept
    return MemoryPlan(
        micro_batch=min(free // working, max(1, MAX_TOKENS // (rows * tokens)), samples),
        keep_in_memory=keep_in_memory,
    )


def plan_sketch(
    mmdit: Any, *, rows: int, tokens: int, probes: int, widths: int, spare_bytes: int
) -> SketchPlan:
    """Divide what the weights leave among states, dW and the probes that go back together; all is float32.

    Args:
        mmdit: DiffusionKit's transformer.
        rows: of a sample: 2 with CFG.
        tokens: of a row, image and text together.
        probes: of a sample, at once or not.
        widths: bit widths of each layer.
        spare_bytes: what the sketch may take.
    """
    config = mmdit.config
    blocks = config.depth_multimodal + config.depth_unified + 2
    state = 4 * rows * tokens * config.hidden_size
    # Differentiated attention holds its scores on every machine.
    scores = 4 * rows * config.num_heads * tokens**2
    block, largest = largest_block(mmdit), max(_sizes(mmdit))
    # The state of each block, what the probes have come to before and after this block, its forward pass, and
    # a dW while it is made.
    always = blocks * state + 2 * probes * state + 4 * block + 24 * state + 2 * scores + 24 * largest
    # The gradient of one layer is laid out anew before it is contracted.
    probe = 4 * (block + largest) + 8 * state + 3 * scores
    spare = spare_bytes - always
    deltas = 4 * sum(_sizes(mmdit)) * widths
    keep_deltas = deltas <= spare - probes * probe
    if keep_deltas:
        spare -= deltas
    return SketchPlan(at_once=max(1, min(spare // probe, probes)), keep_deltas=keep_deltas)


def largest_block(mmdit: Any) -> int:
    """Weights of the block that has most of them."""
    by_block: dict[str, int] = {}
    for layer in linear_layers(mmdit):
        block = ".".join(layer.path.split(".")[:2]) if "blocks." in layer.path else "others"
        by_block[block] = by_block.get(block, 0) + layer.shape[0] * layer.shape[1]
    return max(by_block.values())


def _sizes(mmdit: Any) -> list[int]:
    return [get_weight(mmdit, layer.path).size for layer in linear_layers(mmdit)]
