"""An exported model: names of its files, its config.json, and what the producer asks a worker to write.

config.json                         what it was made from, and the `quantization` block
model.safetensors.index.json        which tensor is in which file
model-00001-of-00002.safetensors    every tensor of the transformer, by MLX path
plan.json, verification.json        the plan, and its proof if there is one
README.md                           size, gains, and how it was made
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from shared.kinds.kind import Layer
from shared.plan import Choice
from shared.runs import Digest, Identifier, RunSettings

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
README = "README.md"
PLAN_COPY = "plan.json"
PROOF_COPY = "verification.json"
MAX_FILE_BYTES = 2 * 2**30
"""Of one file of tensors."""


class Origin(Struct, frozen=True, kw_only=True):
    """What an exported model was made from. Fields of later revisions are ignored."""

    format: Literal[1] = 1
    """Increased when older readers would misread a folder."""
    run: RunSettings
    """How it was measured, and how it draws unless told otherwise."""
    fingerprint: Digest
    """Of the files of the original model."""
    plan_id: Identifier


class ExportConfig(Struct, frozen=True, kw_only=True):
    """config.json. Tools may have added fields of their own."""

    bitfleet: Origin
    quantization: dict[str, Any] = {}
    """See shared.quantization_block."""
    quantization_config: dict[str, Any] = {}
    """The same once more, under the name that Hugging Face reads."""


class ExportRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker is to write."""

    origin: Origin
    layers: dict[Layer, Choice]
    checkpoint: str | None = None
    """Path of the run's own transformer weights, if it has any."""
    max_file_bytes: Annotated[int, Meta(ge=1)] = MAX_FILE_BYTES


class WeightIndex(Struct, frozen=True, kw_only=True):
    """model.safetensors.index.json."""

    metadata: dict[str, Any] = {}
    weight_map: dict[str, str]
    """File of each tensor."""


config_decoder = msgspec.json.Decoder(ExportConfig)
index_decoder = msgspec.json.Decoder(WeightIndex)
request_decoder = msgspec.json.Decoder(ExportRequest)


def encode_indented(value: Struct) -> bytes:
    """Return JSON that people can read."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
