"""What a transformer is made of, known without loading it: enough to count passes, bytes and memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Reads = Literal["image", "text", "both", "vector"]
"""What a linear layer sees: tokens of the image, of the text, of both, or one vector an image and step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One linear layer."""

    outputs: int
    inputs: int
    reads: Reads
    block: int | None
    """Position of its block; that behind the last one for the final layer, None for embedders."""

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.outputs * self.inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """A transformer of the MMDiT kind (Esser et al. 2024), as SD3 and FLUX.1."""

    width: int
    """Channels of a token."""
    heads: int
    double_blocks: int
    """Blocks with layers of their own for image and text."""
    single_blocks: int = 0
    """Blocks with one set of layers for both, which follow."""
    mlp_ratio: int = 4
    """Channels within an MLP, by `width`."""
    patch: int = 2
    """Pixels of a latent on a side of a token."""
    latent_channels: int = 16
    text_width: int = 4096
    """Channels of a token of text as it enters."""
    pooled_width: int = 2048
    frequencies: int = 256
    """Of the embedding of a timestep."""
    text_ends_early: bool = True
    """The last block's text stream ends with its keys and values, as in SD3."""
    embeds_guidance: bool = False

    @property
    def blocks(self) -> int:
        """How many there are in all."""
        return self.double_blocks + self.single_blocks

    @property
    def linear_layers(self) -> list[Linear]:
        """Every linear layer, patch embedding included."""
        return [*self._embedders(), *self._double(), *self._single(), *self._final()]

    @property
    def weights(self) -> int:
        """Weights of all linear layers."""
        return sum(layer.weights for layer in self.linear_layers)

    def image_tokens(self, image_size: int) -> int:
        """Of a square image of this width in pixels; a latent has one pixel for eight."""
        return (image_size // 8 // self.patch) ** 2

    def forward_flops(self, *, image_tokens: int, text_tokens: int, rows: int) -> float:
        """Floating point operations of one forward pass: two for each weight and token, and attention's.

        Args:
            image_tokens: of a row.
            text_tokens: of a row.
            rows: 2 with CFG.
        """
        tokens = {"image": image_tokens, "text": text_tokens, "vector": 1}
        tokens["both"] = image_tokens + text_tokens
        products = sum(2 * layer.weights * tokens[layer.reads] for layer in self.linear_layers)
        attention = 4 * self.blocks * self.width * tokens["both"] ** 2
        return float(rows * (products + attention))

    def _embedders(self) -> Iterator[Linear]:
        vectors = [self.pooled_width, self.frequencies, *([self.frequencies] if self.embeds_guidance else [])]
        for inputs in vectors:
            yield Linear(outputs=self.width, inputs=inputs, reads="vector", block=None)
            yield Linear(outputs=self.width, inputs=self.width, reads="vector", block=None)
        yield Linear(outputs=self.width, inputs=self.text_width, reads="text", block=None)
        yield Linear(outputs=self.width, inputs=self._patch_size, reads="image", block=None)

    def _double(self) -> Iterator[Linear]:
        for block in range(self.double_blocks):
            ends = self.text_ends_early and block == self.double_blocks - 1
            yield from self._stream(block, "image", modulations=6)
            yield from self._stream(block, "text", modulations=2 if ends else 6, ends=ends)

    def _single(self) -> Iterator[Linear]:
        for block in range(self.double_blocks, self.blocks):
            yield from self._stream(block, "both", modulations=3)

    def _stream(self, block: int, reads: Reads, *, modulations: int, ends: bool = False) -> Iterator[Linear]:
        width, wide = self.width, self.mlp_ratio * self.width
        yield Linear(outputs=modulations * width, inputs=width, reads="vector", block=block)
        for outputs, inputs in (
            *[(width, width)] * (3 if ends else 4),
            *([] if ends else [(wide, width), (width, wide)]),
        ):
            yield Linear(outputs=outputs, inputs=inputs, reads=reads, block=block)

    def _final(self) -> Iterator[Linear]:
        yield Linear(outputs=2 * self.width, inputs=self.width, reads="vector", block=self.blocks)
        yield Linear(outputs=self._patch_size, inputs=self.width, reads="image", block=self.blocks)

    @property
    def _patch_size(self) -> int:
        return self.latent_channels * self.patch**2
