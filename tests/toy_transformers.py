"""Two small transformers that are no MMDiT: a DiT with one list of blocks, and one with two interleaved."""

import mlx.core as mx
import mlx.nn as nn


class ToyBlock(nn.Module):
    """Attention and MLP with adaptive layer norm; the modulation is a keyword argument."""

    def __init__(self, width: int, *, modulated: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, affine=False)
        if modulated:
            self.modulation = nn.Linear(width, 2 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def __call__(self, h: mx.array, other: mx.array | None = None, *, c: mx.array) -> mx.array:
        shift, scale = mx.split(self.modulation(c) if "modulation" in self else c, 2, axis=-1)
        tokens = h if other is None else mx.concatenate([h, other], axis=1)
        q, k, v = mx.split(self.qkv(self.norm(tokens) * (1 + scale) + shift), 3, axis=-1)
        scores = mx.softmax(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5, axis=-1)
        h = h + self.out(scores @ v)[:, : h.shape[1]]
        return h + self.down(nn.gelu(self.up(self.norm(h))))


class ToyDiT(nn.Module):
    """Class-conditional DiT: tokens in, tokens out."""

    def __init__(self, channels: int = 8, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.patch_in = nn.Linear(channels, width)
        self.time_in = nn.Linear(1, width)
        self.layers = [ToyBlock(width, modulated=True) for _ in range(depth)]
        self.patch_out = nn.Linear(width, channels)

    def __call__(self, x: mx.array, t: mx.array) -> mx.array:
        c = nn.silu(self.time_in(t[:, None]))[:, None, :]
        h = self.patch_in(x)
        for layer in self.layers:
            h = layer(h, c=c)
        return self.patch_out(h)


class TwoStreams(nn.Module):
    """Image and text blocks in turn, each reading the other stream; they share one modulation."""

    def __init__(self, channels: int = 8, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.image_in = nn.Linear(channels, width)
        self.text_in = nn.Linear(16, width)
        self.shared_modulation = nn.Linear(1, 2 * width)
        self.image_blocks = [ToyBlock(width, modulated=False) for _ in range(depth)]
        self.text_blocks = [ToyBlock(width, modulated=False) for _ in range(depth)]
        self.image_out = nn.Linear(2 * width, channels)

    def __call__(self, x: mx.array, text: mx.array, t: mx.array) -> mx.array:
        c = self.shared_modulation(t[:, None])[:, None, :]
        h, e = self.image_in(x), self.text_in(text)
        for image_block, text_block in zip(self.image_blocks, self.text_blocks, strict=True):
            h = image_block(h, e, c=c)
            e = text_block(e, h, c=c)
        pooled = mx.broadcast_to(e.mean(axis=1, keepdims=True), h.shape)
        return self.image_out(mx.concatenate([h, pooled], axis=-1))
