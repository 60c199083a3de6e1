"""The trainable model: DiffusionKit's CLIPs and MMDiT, run on batches of mixed timesteps."""

import math
from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np
from mlx import nn

from worker.families.diffusionkit.quiet_imports import quiet_imports
from worker.families.diffusionkit.vocabulary import byte_pair_merges, vocabulary

with quiet_imports():
    from diffusionkit.mlx.mmdit import MMDiT
    from diffusionkit.mlx.tokenizer import Tokenizer

    from worker.families.diffusionkit.small_models import DEMO
    from worker.families.diffusionkit.tiny_checkpoint import new_clip

PATCH = 2
_KEY = 0.0
"""Stands for the timestep: DiffusionKit looks modulations up by it, and here each row has its own."""


class Painter(nn.Module):
    """Text encoders and transformer.

    Two shortcuts leave the function unchanged. The context embedder has only the columns that the text
    encoders fill; the others meet zeros. And one zero token stands for the zeros that DiffusionKit puts in
    T5's place: equal tokens stay equal in every block, so their number is a constant added to the logits.
    """

    def __init__(self) -> None:
        super().__init__()
        config = DEMO.mmdit_config("float32")
        self.clip_l = new_clip(DEMO, DEMO.clip_widths[0])
        self.clip_g = new_clip(DEMO, DEMO.clip_widths[1])
        self.mmdit = MMDiT(replace(config, token_level_text_embed_dim=sum(DEMO.clip_widths)))
        self._begin_at_identity()

    def _begin_at_identity(self) -> None:
        """Every gate and the output start at zero (Peebles and Xie 2022, https://arxiv.org/abs/2212.09748)."""
        linears = [self.mmdit.final_layer.linear]
        for module in self.mmdit.modules():
            if hasattr(module, "adaLN_modulation"):
                linears.append(module.adaLN_modulation.layers[1])
        for linear in linears:
            linear.weight = mx.zeros_like(linear.weight)
            linear.bias = mx.zeros_like(linear.bias)

    def encode_text(self, tokens_l: mx.array, tokens_g: mx.array) -> tuple[mx.array, mx.array]:
        """(B, T + 1, D) and (B, P), from (B, T) tokens; the last text token is zero."""
        encoded = (self.clip_l(tokens_l), self.clip_g(tokens_g))
        text = mx.concatenate([output.hidden_states[-2] for output in encoded], axis=-1)
        zero = mx.zeros((text.shape[0], 1, text.shape[2]))
        pooled = mx.concatenate([output.pooled_output for output in encoded], axis=-1)
        return mx.concatenate([text, zero], axis=1), pooled

    def __call__(self, x_t: mx.array, sigma: mx.array, tokens_l: mx.array, tokens_g: mx.array) -> mx.array:
        """Velocity (B, H, W, 16) of latents (B, H, W, 16) at noise levels `sigma` (B,)."""
        text, pooled = self.encode_text(tokens_l, tokens_g)
        condition = self.mmdit.y_embedder(pooled)[:, None, None, :] + self.mmdit.t_embedder(1000 * sigma)
        for module in self.mmdit.modules():
            if hasattr(module, "adaLN_modulation"):
                module._modulation_params = {_KEY: module.adaLN_modulation(condition)}
        self._count_zero_token(image_tokens=x_t.shape[1] * x_t.shape[2] // PATCH**2, zeros=tokens_l.shape[1])
        velocity: mx.array = self.mmdit(x_t, text[:, :, None, :], mx.full((x_t.shape[0],), _KEY))
        return velocity

    def _count_zero_token(self, image_tokens: int, zeros: int) -> None:
        logits = np.zeros(image_tokens + zeros + 1, np.float32)
        logits[-1] = math.log(zeros)
        attention = partial(mx.fast.scaled_dot_product_attention, mask=mx.array(logits)[None, None, None])
        for block in self.mmdit.multimodal_transformer_blocks:
            block.sdpa = attention


def new_tokenizer() -> Tokenizer:
    """The tokenizer that DiffusionKit will make of the shipped files."""
    merges = byte_pair_merges()
    tokenizer = Tokenizer(dict(zip(merges, range(len(merges)), strict=True)), vocabulary(merges))
    tokenizer.max_length = DEMO.max_length
    return tokenizer


def tokenize(tokenizer: Tokenizer, prompts: list[str]) -> tuple[mx.array, mx.array]:
    """(B, T) tokens for each encoder, padded as DiffusionKit does: with the end token, and with token 0."""
    rows = [tokenizer.tokenize(prompt) for prompt in prompts]
    lengths = [DEMO.max_length - len(row) for row in rows]
    padded_l = [row + [tokenizer.eos_token] * more for row, more in zip(rows, lengths, strict=True)]
    padded_g = [row + [0] * more for row, more in zip(rows, lengths, strict=True)]
    return mx.array(padded_l), mx.array(padded_g)
