"""What a worker says of the model it loaded: the layers that can be quantized, in pipeline order."""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shared.errors import ShardCorruptError
from shared.kinds.kind import Layer
from shared.layer_place import LayerPlace
from shared.runs import Digest


class LayerInfo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One linear layer of the transformer."""

    path: Layer
    """Dotted MLX path."""
    shape: tuple[int, int]
    """(outputs, inputs) of the weight."""
    place: LayerPlace | None = None
    """None in cards of older revisions."""

    def unmeasurable(self, group_size: int) -> str | None:
        """Why MLX can't quantize this layer in groups of `group_size` inputs; None if it can."""
        if self.shape[1] % group_size:
            return f"{self.path} has {self.shape[1]} inputs, no multiple of the group size {group_size}"
        return None


class ModelCard(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Travels in each calibration shard: the producer enqueues layers without ever loading a model."""

    model: str
    fingerprint: Digest
    """sha256 over the transformer's files; with DiffusionKit's forward pass over all of the model's."""
    parts: dict[str, Digest] = {}
    """sha256 over the files of each part that drew the image; empty in cards of older revisions."""
    parameters: Annotated[int, Meta(ge=0)]
    """Of the whole transformer, without tables."""
    layers: tuple[LayerInfo, ...]
    """In the order of the forward pass: embedders, blocks, final layer."""

    @property
    def has_places(self) -> bool:
        """Whether it says where its layers sit; cards of older revisions don't."""
        return all(layer.place is not None for layer in self.layers)


_decoder = msgspec.json.Decoder(ModelCard)


def encode_model_card(card: ModelCard) -> bytes:
    """JSON of a card."""
    return msgspec.json.encode(card)


def decode_model_card(data: bytes) -> ModelCard:
    """Read back a card.

    Raises:
        ShardCorruptError: not a model card.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ShardCorruptError(f"not a model card: {error}") from None
