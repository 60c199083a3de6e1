"""A forward pass of the transformer as a list of steps, so that it can start in its middle.

A step takes the state that the step before it left and makes the next; a state is a tuple of arrays.
A changed weight changes nothing before the step that its layer belongs to. The steps run DiffusionKit's
own modules, and for one sample give its output to the last bit; for several samples the modulation is
set row by row, so that samples of different timesteps share a pass.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from worker.model.modulation import clear_modulation, modulation_inputs
from worker.model.quiet_imports import quiet_imports

with quiet_imports():
    from diffusionkit.mlx.mmdit import RoPE, unpatchify

State = tuple[mx.array, ...]

_PARAM_NAMES = (
    "post_norm1_shift",
    "post_norm1_residual_scale",
    "post_attn_scale",
    "post_norm2_shift",
    "post_norm2_residual_scale",
    "post_mlp_scale",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a forward pass reads; R rows are S samples with their CFG halves side by side."""

    x: mx.array
    """(R, H, W, C)."""
    text: mx.array
    """(R, T, 1, D)."""
    pooled: mx.array
    """(R, P)."""
    timesteps: mx.array
    """(R,) as the samples hold them: an embedder that rounds them does so itself."""


@dataclass(slots=True, kw_only=True)
class Pass:
    """One forward pass under way: its inputs, and the modulation computed so far, each once."""

    mmdit: Any
    inputs: Inputs
    modulation: mx.array
    """(R, 1, 1, hidden): what every adaLN layer reads."""
    key: mx.array = field(default_factory=lambda: mx.array(0.0))
    """Blocks look their modulation up by a timestep's value; ours differ by row, so any value serves."""
    _params: dict[int, mx.array] = field(default_factory=dict)

    def modulate(self, module: Any) -> mx.array:
        """Set `_modulation_params` of a module, (R, 1, 1, k * hidden), and return them."""
        params = self._params.get(id(module))
        if params is None:
            params = self._params[id(module)] = module.adaLN_modulation(self.modulation)
        module._modulation_params = {self.key.item(): params}
        return params

    def named_params(self, module: Any) -> dict[str, mx.array]:
        """The modulation of a block by the names that `post_sdpa` knows."""
        parts = mx.split(self.modulate(module), module.num_modulation_params, axis=-1)
        return dict(zip(_PARAM_NAMES, parts, strict=False))

    @property
    def positions(self) -> mx.array | None:
        """Rotary positions; None for models that learn theirs."""
        rope = self.mmdit.pre_sdpa_rope
        if not isinstance(rope, RoPE):
            return None
        patch, (_, height, width, _) = self.mmdit.config.patch_size, self.inputs.x.shape
        positions: mx.array = rope(
            text_sequence_length=self.inputs.text.shape[1],
            latent_image_resolution=(height // patch, width // patch),
        )
        return positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One part of the forward pass, and the layers (by the start of their path) that it needs first."""

    layers: tuple[str, ...]
    run: Callable[[State, Pass], State]
    block: int
    """Steps of one block have one number: 0 for the embedders, then the blocks, then the final layer."""


def forward_steps(mmdit: Any) -> list[Step]:
    """All steps of a forward pass; the last leaves (velocity,) with velocity (R, H, W, C)."""
    steps = [Step(layers=("",), run=_embed, block=0)]
    for index, block in enumerate(mmdit.multimodal_transformer_blocks):
        steps += _multimodal_steps(f"multimodal_transformer_blocks.{index}.", block, number=index + 1)
    if mmdit.config.depth_unified > 0:
        for index, block in enumerate(mmdit.unified_transformer_blocks):
            path, number = f"unified_transformer_blocks.{index}.", steps[-1].block + 1
            steps += _unified_steps(path, block, number=number, first=index == 0)
    return [*steps, Step(layers=("final_layer.",), run=_finish, block=steps[-1].block + 1)]


def start_of(steps: Sequence[Step], layer: str) -> int:
    """Index of the first step that a change of this layer changes."""
    matches = [
        (len(start), index)
        for index, step in enumerate(steps)
        for start in step.layers
        if layer.startswith(start)
    ]
    return max(matches)[1]


def run_steps(mmdit: Any, steps: Sequence[Step], state: State, inputs: Inputs) -> State:
    """Run these steps from `state`, with the weights as they are now; nothing is evaluated yet."""
    modulation = modulation_inputs(mmdit, inputs.pooled, inputs.timesteps)
    return run_modulated(mmdit, steps, state, inputs, modulation)


def run_modulated(
    mmdit: Any, steps: Sequence[Step], state: State, inputs: Inputs, modulation: mx.array
) -> State:
    """`run_steps` under a modulation input (R, 1, 1, hidden) computed before."""
    forward = Pass(mmdit=mmdit, inputs=inputs, modulation=modulation)
    try:
        for step in steps:
            state = step.run(state, forward)
    finally:
        clear_modulation(mmdit)
    return state


def velocity_dtype(mmdit: Any, steps: Sequence[Step], inputs: Inputs) -> mx.Dtype:
    """In what the model really computes from these inputs; nothing is evaluated for it.

    Where weights, sinusoids and activations differ in dtype, MLX promotes, and all that follows is wider than
    the inputs.
    """
    (velocity,) = run_steps(mmdit, steps, (), inputs)
    return velocity.dtype


def _embed(_: State, forward: Pass) -> State:
    mmdit, x = forward.mmdit, forward.inputs.x
    image = mmdit.x_embedder(x)
    if hasattr(mmdit, "x_pos_embedder"):
        image = image + mmdit.x_pos_embedder(x)
    image = image.reshape(x.shape[0], -1, 1, mmdit.config.hidden_size)
    return image, mmdit.context_embedder(forward.inputs.text)


def _multimodal_steps(path: str, block: Any, *, number: int) -> list[Step]:
    image_block, text_block = block.image_transformer_block, block.text_transformer_block

    def attend(state: State, forward: Pass) -> State:
        image, text = state
        forward.modulate(image_block)
        forward.modulate(text_block)
        image_qkv = image_block.pre_sdpa(image, timestep=forward.key)
        text_qkv = text_block.pre_sdpa(text, timestep=forward.key)
        if block.config.depth_unified > 0:
            text_out, image_out = _joint_attention(block, (text_qkv, image_qkv), forward)
        else:
            image_out, text_out = _joint_attention(block, (image_qkv, text_qkv), forward)
        return image, text, image_out, text_out

    def image_mlp(state: State, forward: Pass) -> State:
        image, text, image_out, text_out = state
        params = forward.named_params(image_block)
        image = image_block.post_sdpa(image, image_out, None, **params)
        return image, text, text_out

    def text_mlp(state: State, forward: Pass) -> State:
        image, text, text_out = state
        if text_block.skip_post_sdpa:
            return (image,)
        params = forward.named_params(text_block)
        return image, text_block.post_sdpa(text, text_out, None, **params)

    return [
        Step(layers=(path,), run=attend, block=number),
        Step(layers=_after_sdpa(f"{path}image_transformer_block."), run=image_mlp, block=number),
        Step(layers=_after_sdpa(f"{path}text_transformer_block."), run=text_mlp, block=number),
    ]


def _unified_steps(path: str, block: Any, *, number: int, first: bool) -> list[Step]:
    module = block.transformer_block
    # DiffusionKit zeroes this bias in every forward pass: it is a part of o_proj's.
    module.mlp.fc2.bias = mx.zeros_like(module.mlp.fc2.bias)

    def attend(state: State, forward: Pass) -> State:
        tokens = mx.concatenate([state[1], state[0]], axis=1) if first else state[0]
        forward.modulate(module)
        qkv = module.pre_sdpa(tokens, timestep=forward.key)
        (out,) = _joint_attention(block, (qkv,), forward)
        return tokens, out, qkv["modulated_pre_attention"]

    def mlp(state: State, forward: Pass) -> State:
        tokens, out, modulated = state
        return (module.post_sdpa(tokens, out, modulated, **forward.named_params(module)),)

    return [
        Step(layers=(path,), run=attend, block=number),
        Step(layers=_after_sdpa(f"{path}transformer_block."), run=mlp, block=number),
    ]


def _after_sdpa(path: str) -> tuple[str, str]:
    return f"{path}attn.o_proj", f"{path}mlp."


def _joint_attention(block: Any, parts: Sequence[dict[str, mx.array]], forward: Pass) -> list[mx.array]:
    """Attention over all tokens of the parts together; each part's own share, (R, tokens, 1, hidden)."""
    config = block.config
    rows, heads = forward.inputs.x.shape[0], config.num_heads
    # Models with unified blocks keep heads apart, (R, heads, tokens, channels), the others join them.
    by_head = config.depth_unified > 0
    axis = 2 if by_head else 1
    joined = {name: mx.concatenate([part[name] for part in parts], axis=axis) for name in "qkv"}
    if not by_head:
        joined = {
            name: value.reshape(rows, -1, heads, block.per_head_dim).transpose(0, 2, 1, 3)
            for name, value in joined.items()
        }
    if (positions := forward.positions) is not None:
        joined |= {name: RoPE.apply(joined[name], positions) for name in "qk"}
    out = block.sdpa(**joined, scale=1.0 / math.sqrt(block.per_head_dim))
    out = out.transpose(0, 2, 1, 3).reshape(rows, -1, 1, config.hidden_size)
    lengths = [part["q"].shape[axis] for part in parts]
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths) - 1)]
    shares: Any = mx.split(out, ends, axis=1)
    return list(shares)


def _finish(state: State, forward: Pass) -> State:
    mmdit, config = forward.mmdit, forward.mmdit.config
    _, height, width, _ = forward.inputs.x.shape
    tokens = state[0]
    if config.depth_unified > 0:
        tokens = tokens[:, forward.inputs.text.shape[1] :, ...]
    forward.modulate(mmdit.final_layer)
    patches = mmdit.final_layer(tokens, forward.key)
    if config.patchify_via_reshape:
        return (mmdit.x_embedder.unpack(patches, (height, width)),)
    velocity = unpatchify(
        patches,
        patch_size=config.patch_size,
        target_height=height,
        target_width=width,
        vae_latent_dim=config.vae_latent_dim,
    )
    return (velocity,)
