"""The model card: what a worker reports about the model it loaded, above all its quantizable layers."""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shared.decoding import decode
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
        """Return why MLX can't quantize this layer with this group size; None if it can."""
        if self.shape[1] % group_size:
            return f"{self.path} has {self.shape[1]} inputs, no multiple of the group size {group_size}"
        return None


class ModelCard(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of each calibration shard, so that the producer knows the layers without loading a model."""

    model: str
    fingerprint: Digest
    """sha256 of the transformer's files; of all the model's files with DiffusionKit's forward pass."""
    parts: dict[str, Digest] = {}
    """sha256 of the files of each part that drew the image; empty in cards from older revisions."""
    parameters: Annotated[int, Meta(ge=0)]
    """Number of parameters of the whole transformer, without tables."""
    layers: tuple[LayerInfo, ...]
    """In the order of the forward pass: embedders, blocks, final layer."""

    @property
    def has_places(self) -> bool:
        """Whether it says where its layers sit; cards of older revisions don't."""
        return all(layer.place is not None for layer in self.layers)


_decoder = msgspec.json.Decoder(ModelCard)


def encode_model_card(card: ModelCard) -> bytes:
    """Return a card as JSON."""
    return msgspec.json.encode(card)


def decode_model_card(data: bytes) -> ModelCard:
    """Return the card that `encode_model_card` wrote.

    Raises:
        ShardCorruptError: not a model card.
    """
    return decode(_decoder, data, ShardCorruptError, "not a model card")
