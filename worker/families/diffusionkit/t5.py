"""DiffusionKit's T5 encoder, mended: it leaves the machine's memory limit alone, and takes Google's GELU."""

from typing import Any

import mlx.core as mx
from diffusionkit.mlx.t5 import DenseActivation, TransformerEncoder
from mlx import nn

from worker.families.diffusionkit.published import gelu_tanh


class T5Stack(TransformerEncoder):  # type: ignore[misc]
    """All layers of T5's encoder.

    DiffusionKit's ends in `set_memory_limit(device_info()["memory_size"])`: no such entry exists on Linux,
    and on a Mac it overrides the limit that was set for the process.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, D) token embeddings to (B, T, D) hidden states, in the dtype of `x`."""
        bias = self.relative_attention_bias(x.shape[1], x.shape[1])
        hidden = x
        for layer in self.layers:
            hidden = layer(hidden, mask=bias)
        normed: mx.array = self.ln(hidden).astype(x.dtype)
        return normed


class PublishedDense(DenseActivation):  # type: ignore[misc]
    """What T5 1.1 calls "gelu" is the tanh form (`gelu_new` in transformers); DiffusionKit's is exact."""

    act: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if self.act is nn.gelu:
            self.act = gelu_tanh
