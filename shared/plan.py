"""What a quantized model is: for each layer the bit width and the group size, or the weight as it is."""

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from shared.decoding import decode
from shared.errors import ShardCorruptError
from shared.kinds.kind import Bits, Layer

GroupSize = Literal[32, 64, 128]
SCALE_BYTES = 2
"""Of a scale, and of a bias: float16 or bfloat16, what a quantized model is shipped in."""


class Choice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, order=True):
    """How one layer's weight is quantized by MLX's affine mode."""

    bits: Bits
    group_size: GroupSize

    @property
    def label(self) -> str:
        """A short name, for messages and tables: `4/64`."""
        return f"{self.bits}/{self.group_size}"

    def stored_bytes(self, shape: tuple[int, int], scale_bytes: int = SCALE_BYTES) -> int:
        """Bytes of a weight (outputs, inputs): codes, and for each group a scale and a bias.

        The inputs must fill whole groups.
        """
        weights = shape[0] * shape[1]
        return weights * self.bits // 8 + 2 * scale_bytes * weights // self.group_size


class Variant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model with some of its layers quantized."""

    name: Annotated[str, Meta(min_length=1, max_length=80)]
    """What messages and reports call it: "original", "plan", "uniform 4/64"."""
    layers: dict[Layer, Choice] = {}
    """Layers that are not named keep their weights. The original model names none."""


_decoder = msgspec.json.Decoder(tuple[Variant, ...])


def encode_variants(variants: tuple[Variant, ...]) -> bytes:
    """Return variants as JSON, which travels as a blob of the store."""
    return msgspec.json.encode(variants, order="sorted")


def decode_variants(data: bytes) -> tuple[Variant, ...]:
    """Return the variants that `encode_variants` wrote.

    Raises:
        ShardCorruptError: these are no variants, or there is none.
    """
    variants = decode(_decoder, data, ShardCorruptError, "not a list of variants")
    if not variants:
        raise ShardCorruptError("not a list of variants: it is empty")
    return variants


def variants_digest(data: bytes) -> str:
    """Return the sha256 in hex, which names encoded variants."""
    return hashlib.sha256(data).hexdigest()
