"""A task: what to compute, as plain data. Decoding validates; what does not fit is refused."""

import hashlib
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from shared.errors import TaskRefusedError
from shared.runs import Identifier, RunSettings, Seed, SensitivitySettings

LAYER_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*\Z"

Layer = Annotated[str, Meta(pattern=LAYER_PATTERN, max_length=200)]
Bits = Annotated[int, Meta(ge=1, le=8)]


class CalibrationTask(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="calibration"):
    """One image: its whole denoising trajectory."""

    run: RunSettings
    store_id: Identifier
    image_index: Annotated[int, Meta(ge=0, le=10_000_000)]
    prompt: Annotated[str, Meta(max_length=10_000)]
    seed: Seed

    @property
    def id(self) -> str:
        """Job id, shard name and record name."""
        return f"cal-{self.run.id}-{self.image_index:05d}"

    @property
    def group(self) -> str:
        """What a store files it under."""
        return self.run.id

    @property
    def label(self) -> str:
        """For people."""
        return f"image {self.image_index}"


class SensitivityTask(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="sensitivity"):
    """One (layer, bits): what the model's output suffers when this weight is quantized."""

    run: RunSettings
    sensitivity: SensitivitySettings
    store_id: Identifier
    layer: Layer
    bits: Bits

    @property
    def id(self) -> str:
        """Job id, shard name and record name; a dotted path is no job id, so it is hashed."""
        layer = hashlib.sha256(self.layer.encode()).hexdigest()[:12]
        return f"sen-{self.sensitivity.id}-{layer}-b{self.bits}"

    @property
    def group(self) -> str:
        """What a store files it under."""
        return self.sensitivity.id

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.layer} at {self.bits} bits"


class SketchTask(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="sketch"):
    """One sample and a group of probes: every layer at all of these bit widths, to first order."""

    run: RunSettings
    sensitivity: SensitivitySettings
    store_id: Identifier
    bits: Annotated[tuple[Bits, ...], Meta(min_length=1, max_length=7)]
    sample: Annotated[int, Meta(ge=0, le=10_000_000)]
    """Place in the sample set."""
    probe_group: Annotated[int, Meta(ge=0, le=10_000)]
    """Seeds the probes, with the sample: more groups add probes to those that were there."""
    probes: Annotated[int, Meta(ge=1, le=64)]
    """Of this group."""

    @property
    def id(self) -> str:
        """Job id, shard name and record name; other bit widths or numbers of probes are other tasks."""
        widths = "".join(str(bits) for bits in self.bits)
        return (
            f"ske-{self.sensitivity.id}-b{widths}-p{self.probes}-s{self.sample:05d}-g{self.probe_group:03d}"
        )

    @property
    def group(self) -> str:
        """What a store files it under."""
        return self.sensitivity.id

    @property
    def label(self) -> str:
        """For people."""
        return f"sketch of sample {self.sample}, probes {self.probe_group}"


Task = CalibrationTask | SensitivityTask | SketchTask

_decoder = msgspec.json.Decoder(Task)


def encode_task(task: Task) -> str:
    """JSON text of a task: the one argument of its job."""
    return msgspec.json.encode(task).decode()


def decode_task(text: str | bytes) -> Task:
    """Read back a task.

    Raises:
        TaskRefusedError: not a task of this protocol, or a field outside its limits.
    """
    try:
        task: Task = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise TaskRefusedError(f"not a task this revision knows: {error}") from None
    return task


def to_builtins(task: Task) -> dict[str, Any]:
    """Plain dicts and lists of a task, for a record or a report."""
    plain: dict[str, Any] = msgspec.to_builtins(task)
    return plain
