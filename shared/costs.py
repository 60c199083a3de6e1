"""What a task of each kind costs: forward passes, bytes that travel, and peak memory; no model is loaded.

Counted from shapes. The numbers of arrays that a pass holds were measured on a CPU (`mx.get_peak_memory()`);
tests hold the engines to them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.models import ModelSpec
from shared.plan import Choice
from shared.runs import RunSettings
from shared.transformer_shape import Linear

SCORES_BYTES = 2**30
"""What the attention scores of the heads that go back together may take; one head goes in any case."""
SCORE_ARRAYS = 4
"""Arrays of scores that a group of heads holds at once, going back."""
BACKWARD_STATES = 48
"""States that a block's differentiated pass holds at once, beside attention scores."""
SLICE_WEIGHTS = 2**22
"""Of a gradient or weight that is sketched, quantized or multiplied at once."""
READING_SLICES = 7
"""Slices, in float32, that this holds at once."""

_CLIP_WIDTH = 768 + 1280
"""Channels of a token of both CLIP text encoders."""
_LARGEST_CHOICE = Choice(bits=8, group_size=32)
_VARIANT_ENTRY_BYTES = 110
"""Of one layer in a variants' blob."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passing:
    """What the memory of one sample's passes depends on."""

    tokens: int
    """Of a row, image and text together."""
    rows: int
    """2 with CFG, else 1."""
    width: int
    heads: int
    blocks: int
    mlp_ratio: float
    largest_layer: int
    """Weights."""
    largest_block: int
    """Weights of the block with most of them; those outside of all blocks count as one."""
    half: bool
    """Weights are stored in 16 bits, and widened for float32 passes."""

    def state_bytes(self, itemsize: int) -> int:
        """Of the tokens that one block hands to the next."""
        return self.rows * self.tokens * self.width * itemsize

    def scores_bytes(self, heads: int) -> int:
        """Of one array of float32 attention scores of some heads."""
        return 4 * self.rows * heads * self.tokens**2

    def heads_at_once(self) -> int:
        """Heads whose scores go back together within `SCORES_BYTES`."""
        return max(1, min(self.heads, SCORES_BYTES // (SCORE_ARRAYS * self.scores_bytes(1))))


def forward_bytes(passing: Passing, *, itemsize: int, fused_attention: bool) -> int:
    """What one sample's forward pass works in, beside all weights.

    Args:
        passing: of the sample.
        itemsize: bytes of an activation.
        fused_attention: the scores are never held, as on Metal.
    """
    # Of a block, at once: states, modulated states, q, k, v, attention, and the inside of an MLP, twice.
    # In 16 bits positions, softmax and the like are computed in float32.
    arrays = (11 if itemsize == 4 else 20) + 2 * passing.mlp_ratio
    working = int(passing.state_bytes(itemsize) * arrays)
    return working if fused_attention else working + 2 * passing.scores_bytes(passing.heads)


def trajectory_bytes(passing: Passing) -> int:
    """What one step of a backward trajectory works in, beside all weights; all is float32.

    The state at each block's entry, a block's widened weights, and the larger of two: what the block's
    differentiated pass holds half way, or all its gradients while the largest of them is read.
    """
    state, block = passing.state_bytes(4), 4 * passing.largest_block
    going_back = BACKWARD_STATES * state + SCORE_ARRAYS * passing.scores_bytes(passing.heads_at_once())
    reading = block + _reading_bytes(passing)
    widened = block if passing.half else 0
    return (passing.blocks + 1) * state + widened + max(going_back, reading)


def _reading_bytes(passing: Passing) -> int:
    return READING_SLICES * 4 * min(passing.largest_layer, SLICE_WEIGHTS)


def sketch_bytes(passing: Passing, probes: int) -> tuple[int, int]:
    """What a sketch works in beside all weights: in any case, and for each probe that goes back at once."""
    state, block, largest = passing.state_bytes(4), passing.largest_block, passing.largest_layer
    scores = passing.scores_bytes(passing.heads)
    # The state of each block, what the probes have come to before and after this block, its forward pass, and
    # a dW while it is made.
    always = (passing.blocks + 2 + 2 * probes + 24) * state + 2 * scores + 4 * block + 24 * largest
    # The gradient of one layer is laid out anew before it is contracted.
    return always, 4 * (block + largest) + 8 * state + 3 * scores


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSize:
    """How much a task is asked to do."""

    image_size: int
    num_steps: int
    rows: int
    """2 with CFG, else 1."""
    text_tokens: int
    """Of a row."""
    text_encoder_bytes: int = 0
    """Of the text encoders' weights."""
    samples: int = 1
    """Of an exact measurement's sample set."""
    probes: int = 1
    """Of a sketch."""
    candidates: Sequence[Choice] = field(default_factory=tuple)
    """Ways to quantize a layer: those of weights, levels or a sketch."""
    variants: int = 1
    """Of a confirmation or verification, the original included."""
    fused_attention: bool = True
    """As on Metal; on a CPU the scores are held."""

    @classmethod
    def of(cls, run: RunSettings, spec: ModelSpec, **more: Any) -> "TaskSize":
        """That of a run's tasks; `more` is what only some kinds know."""
        return cls(
            image_size=run.image_size,
            num_steps=run.num_steps,
            rows=2 if run.cfg_weight > 0 else 1,
            text_tokens=spec.text_tokens(use_t5=run.use_t5),
            text_encoder_bytes=spec.text_encoder_bytes(use_t5=run.use_t5),
            **more,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one task."""

    forward_passes: float
    """Guided ones: with CFG of two rows."""
    forward_flops: float
    """Floating point operations of one."""
    shard_bytes: int
    """At most, before it is compressed."""
    blob_bytes: int
    """What a worker fetches for it, once for many tasks."""
    peak_bytes: int
    """Of the worker's memory, weights included."""


def cost_of(kind: str, model: ModelSpec, size: TaskSize) -> Cost:
    """Return what one task of a kind costs.

    Raises:
        KeyError: nothing is known of this kind.
    """
    shape = model.transformer
    return Cost(
        forward_passes=_PASSES[kind](model, size),
        forward_flops=shape.forward_flops(
            image_tokens=shape.image_tokens(size.image_size), text_tokens=size.text_tokens, rows=size.rows
        ),
        shard_bytes=_SHARDS[kind](model, size),
        blob_bytes=_blob_bytes(kind, model, size),
        peak_bytes=peak_bytes(kind, model, size),
    )


def peak_bytes(kind: str, model: ModelSpec, size: TaskSize) -> int:
    """Return what a worker holds at most; for a kind that isn't counted here, weights and a float32 pass."""
    return model.weight_bytes + _MEMORY.get(kind, _exact_memory)(model, size)


def passing_of(model: ModelSpec, size: TaskSize) -> Passing:
    """Return what the memory of the model's passes depends on."""
    shape, blocks = model.transformer, dict[int | None, int]()
    for layer in shape.linear_layers:
        blocks[layer.block] = blocks.get(layer.block, 0) + layer.weights
    return Passing(
        tokens=shape.image_tokens(size.image_size) + size.text_tokens,
        rows=size.rows,
        width=shape.width,
        heads=shape.heads,
        blocks=shape.blocks,
        mlp_ratio=shape.mlp_ratio,
        largest_layer=max(layer.weights for layer in shape.linear_layers),
        largest_block=max(blocks.values()),
        half=model.itemsize == 2,
    )


def packed_bytes(model: ModelSpec, choices: Sequence[Choice]) -> int:
    """Return the bytes of all layers in each of these ways; layers that don't fill groups are left out."""
    return sum(
        choice.stored_bytes((layer.outputs, layer.inputs))
        for choice in choices
        for layer in model.transformer.linear_layers
        if layer.inputs % choice.group_size == 0
    )


Count = Callable[[ModelSpec, TaskSize], int]


def _backward_passes(probes: int) -> float:
    """One probe costs 4.5 forward passes, two 7.2, four 14.1: measured at width 1536."""
    return 1.3 + 3.2 * probes


def candidate_passes(layer: Linear, blocks: int) -> float:
    """Forward passes of an exact candidate for one sample: it starts at the layer's own block."""
    return 1 - (layer.block or 0) / blocks


def _exact_passes(model: ModelSpec, size: TaskSize) -> float:
    """On average over layers."""
    layers, blocks = model.transformer.linear_layers, model.transformer.blocks
    return size.samples * sum(candidate_passes(layer, blocks) for layer in layers) / len(layers)


def drawing_bytes(model: ModelSpec, size: TaskSize) -> int:
    """Return what drawing holds beside the transformer: the text encoders, and a pass."""
    return size.text_encoder_bytes + _forward(model, size, model.itemsize)


def _forward(model: ModelSpec, size: TaskSize, itemsize: int) -> int:
    return forward_bytes(passing_of(model, size), itemsize=itemsize, fused_attention=size.fused_attention)


def _exact_memory(model: ModelSpec, size: TaskSize) -> int:
    return 4 * passing_of(model, size).largest_block + _forward(model, size, 4)


def _going_back(model: ModelSpec, size: TaskSize) -> int:
    """Memory of levels and confirmations; text encoders are gone before the image goes back."""
    return max(drawing_bytes(model, size), trajectory_bytes(passing_of(model, size)))


def _weights_memory(model: ModelSpec, size: TaskSize) -> int:
    return _reading_bytes(passing_of(model, size))


def _verifying(model: ModelSpec, size: TaskSize) -> int:
    return packed_bytes(model, [_LARGEST_CHOICE]) + drawing_bytes(model, size)


_MEMORY: dict[str, Count] = {
    "calibration": drawing_bytes,
    "sensitivity": _exact_memory,
    "sketch": lambda model, size: sum(sketch_bytes(passing_of(model, size), size.probes)),
    "weights": _weights_memory,
    "levels": _going_back,
    "confirm": _going_back,
    "verification": _verifying,
}

_PASSES: dict[str, Callable[[ModelSpec, TaskSize], float]] = {
    "calibration": lambda model, size: size.num_steps,
    "sensitivity": _exact_passes,
    "sketch": lambda model, size: _backward_passes(size.probes),
    "weights": lambda model, size: 0,
    "levels": lambda model, size: size.num_steps * (1 + _backward_passes(1)),
    "confirm": lambda model, size: size.num_steps * (1 + _backward_passes(1)),
    "verification": lambda model, size: size.num_steps * size.variants,
}


def _image_bytes(model: ModelSpec, size: TaskSize) -> int:
    """Of one image's latents and conditioning, in a calibration shard or sample set."""
    shape = model.transformer
    # numpy has no bfloat16: such values travel as float32.
    itemsize = 2 if model.precision == "float16" else 4
    latent = shape.image_tokens(size.image_size) * shape.patch**2 * shape.latent_channels
    conditioning = size.rows * (size.text_tokens * shape.text_width + shape.pooled_width)
    return itemsize * ((size.num_steps + 1) * latent + conditioning)


def samples_bytes(model: ModelSpec, size: TaskSize, steps: int) -> int:
    """Return what sample files of some steps of one image take, at most: each holds the conditioning."""
    return steps * sum(_packed_bytes(model, size))


def kept_shard_bytes(model: ModelSpec, size: TaskSize) -> int:
    """Return what the shard of one image takes in a calibration folder, at most."""
    latent, conditioning = _packed_bytes(model, size)
    return (size.num_steps + 1) * latent + conditioning + _pictures(size)


def _packed_bytes(model: ModelSpec, size: TaskSize) -> tuple[int, int]:
    """Of one step's latent, and of the conditioning.

    What is zero in that takes nothing once compressed: T5's place without T5, and the channels beyond those
    of CLIP (768 + 1280 in SD3).
    """
    shape = model.transformer
    itemsize = 4 if model.precision == "float32" else 2
    latent = shape.image_tokens(size.image_size) * shape.patch**2 * shape.latent_channels
    clip = 0 if model.family == "flux" else model.clip_tokens
    t5 = size.text_tokens - clip if size.text_tokens != 2 * clip else 0
    text = clip * min(shape.text_width, _CLIP_WIDTH) + t5 * shape.text_width
    return itemsize * latent, itemsize * size.rows * (text + shape.pooled_width)


def _levels_bytes(model: ModelSpec, size: TaskSize) -> int:
    layers, parts = len(model.transformer.linear_layers), 4
    return layers * (8 * parts + len(size.candidates) * (8 * parts + 1) + 1) + 8 * (size.num_steps + 3)


def _table_bytes(model: ModelSpec, size: TaskSize) -> int:
    """Of two tables of 8 bytes and one of 1 by layer and candidate."""
    return len(model.transformer.linear_layers) * (17 * len(size.candidates) + 8)


def _pictures(size: TaskSize) -> int:
    """PNG of noise: no picture takes more."""
    return 3 * size.image_size**2


_SHARDS: dict[str, Count] = {
    "calibration": lambda model, size: _image_bytes(model, size) + _pictures(size),
    "sensitivity": lambda model, size: 64 * size.samples,
    "sketch": lambda model, size: (
        _table_bytes(model, size)
        + 8 * len(model.transformer.linear_layers) * len(size.candidates) * size.probes
    ),
    "weights": _table_bytes,
    "levels": _levels_bytes,
    "confirm": lambda model, size: 8 * len(model.transformer.linear_layers) * size.variants,
    "verification": lambda model, size: size.variants * (8 * (size.num_steps + 5) + _pictures(size)),
}


def _blob_bytes(kind: str, model: ModelSpec, size: TaskSize) -> int:
    """A sample set, one image a blob; or variants."""
    if kind in ("sensitivity", "sketch"):
        return _image_bytes(model, size)
    if kind in ("confirm", "verification"):
        return size.variants * len(model.transformer.linear_layers) * _VARIANT_ENTRY_BYTES
    return 0
