"""A calibration folder: which file is where, what was asked for, what is done. Only the producer writes here.

run.json                            what was asked for
manifest.json, samples/, previews/  what has been collected, in the calibration layout
model.json                          the model's layers, as the first worker said
records/                            one a collected image: its existence means done; beside it, its seal
sensitivity/<id>/                   request.json, samples.npz, shards/, records/, results.*, report.html
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from shared.errors import InputError, ShardCorruptError
from shared.files import write_atomically
from shared.kinds.calibration import CalibrationTask
from shared.kinds.kind import Bits, Layer
from shared.kinds.sensitivity import SensitivityTask
from shared.kinds.sketch import SketchTask
from shared.model_card import ModelCard, decode_model_card
from shared.runs import RunSettings, SensitivitySettings
from shared.stores.records import Record, decode_record, encode_record

AnyStruct = TypeVar("AnyStruct", bound=Struct)


class RunFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """run.json: a run, and how many of its images are wanted."""

    settings: RunSettings
    prompts: tuple[str, ...]
    """One an image."""
    store_id: str
    store: str | None
    """Its URL without a password; None for the Redis relay."""

    def tasks(self) -> list[CalibrationTask]:
        """One an image, in order."""
        return [
            CalibrationTask(
                run=self.settings,
                store_id=self.store_id,
                image_index=index,
                prompt=prompt,
                # Seeds wrap where numpy's end.
                seed=(self.settings.seed + index) % 2**32,
            )
            for index, prompt in enumerate(self.prompts)
        ]


class SketchRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is wanted of a sketch."""

    bits: tuple[Bits, ...]
    probes: int
    """Random vectors a sample."""
    verify: int
    """How many pairs to measure exactly afterwards."""


class RequestFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """request.json: a sensitivity run, and which layers and bits of it are wanted."""

    settings: SensitivitySettings
    layers: tuple[Layer, ...]
    """In the order of the forward pass."""
    bits: tuple[Bits, ...]
    """To be measured exactly at each of these layers."""
    samples: int
    max_images: int
    step_stride: int
    sketch: SketchRequest | None = None
    verify: tuple[tuple[Layer, Bits], ...] = ()
    """Sketched pairs that are measured exactly, chosen once the sketch is complete."""

    def pairs(self) -> list[tuple[str, int]]:
        """Every (layer, bits) to be measured exactly, in the order of one sweep through the model."""
        swept = [(layer, bits) for layer in self.layers for bits in self.bits]
        known = set(swept)
        return swept + [pair for pair in self.verify if pair not in known]

    def exact_tasks(self, run: RunFile) -> list[SensitivityTask]:
        """One a (layer, bits)."""
        return [
            SensitivityTask(
                run=run.settings, sensitivity=self.settings, store_id=run.store_id, layer=layer, bits=bits
            )
            for layer, bits in self.pairs()
        ]

    def sketch_tasks(self, run: RunFile) -> list[SketchTask]:
        """One a sample."""
        if self.sketch is None:
            return []
        return [
            SketchTask(
                run=run.settings,
                sensitivity=self.settings,
                store_id=run.store_id,
                bits=self.sketch.bits,
                sample=sample,
                probe_group=0,
                probes=self.sketch.probes,
            )
            for sample in range(self.samples)
        ]

    def tasks(self, run: RunFile) -> list[SensitivityTask | SketchTask]:
        """All of them."""
        return [*self.sketch_tasks(run), *self.exact_tasks(run)]


class CalibFolder:
    """Paths of a calibration folder, and reading and writing of what is not a sample."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run_path = root / "run.json"
        self.model_path = root / "model.json"
        self.manifest_path = root / "manifest.json"
        self.state_dir = root / ".bitfleet"

    def check_writable(self) -> None:
        """Make the folder if need be, and try to write in it.

        Raises:
            InputError: that can't be done.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise InputError(
                f"{self.root} can't be written: {error.strerror}; name another folder with --calib-dir"
            ) from None

    def sample_name(self, image_index: int, step_index: int) -> str:
        """Relative to the root; sorts in the layout's order."""
        return f"samples/image-{image_index:05d}-step-{step_index:03d}.npz"

    def preview_path(self, image_index: int) -> Path:
        """The decoded image."""
        return self.root / "previews" / f"image-{image_index:05d}.png"

    def seal_path(self, task_id: str) -> Path:
        """What an image's samples were when they were collected; see producer.folder.sample_seals."""
        return self.root / "records" / f"{task_id}.seal"

    def sensitivity(self, sensitivity_id: str) -> "SensitivityFolder":
        """One sensitivity run's folder."""
        return SensitivityFolder(self.root / "sensitivity" / sensitivity_id)

    def sensitivities(self) -> list["SensitivityFolder"]:
        """Those that were asked for, by id."""
        requests = sorted(self.root.glob("sensitivity/*/request.json"))
        return [SensitivityFolder(path.parent) for path in requests]

    def read_run(self) -> RunFile | None:
        """What was asked for; None if nothing was.

        Raises:
            InputError: run.json is damaged.
        """
        return _read(self.run_path, RunFile)

    def require_run(self) -> RunFile:
        """What was asked for.

        Raises:
            InputError: nothing was.
        """
        run = self.read_run()
        if run is None:
            raise InputError(f"{self.root} holds no run; start one with `producer enqueue-calibration`")
        return run

    def write_run(self, run: RunFile) -> None:
        """Say what is asked for.

        Raises:
            InputError: the folder holds images of another run, or samples of unknown origin.
        """
        old = self.read_run()
        if old is None and (self.manifest_path.exists() or any(self.root.glob("samples/*.npz"))):
            raise InputError(
                f"{self.root} holds samples that no run.json explains; use another --calib-dir, or move them"
            )
        if old and old.settings != run.settings and self.read_records():
            raise InputError(
                f"{self.root} holds run {old.settings.id}, which differs in {_difference(old, run)}; "
                "use another --calib-dir for these settings"
            )
        if old and old.settings == run.settings and old.store_id != run.store_id:
            raise InputError(
                f"run {old.settings.id} was enqueued with {old.store or 'the Redis relay'} as its store; "
                "give the same --store"
            )
        if old != run:
            write_atomically(self.run_path, _encode(run))

    def read_model(self) -> ModelCard | None:
        """The model's layers; None before the first image was collected."""
        if not self.model_path.exists():
            return None
        try:
            return decode_model_card(self.model_path.read_bytes())
        except ShardCorruptError as error:
            raise InputError(f"{self.model_path}: {error}; delete it and run `producer collect`") from None

    def read_records(self) -> dict[str, Record]:
        """Of collected images, by task id."""
        return read_records(self.root / "records")

    def write_record(self, record: Record) -> None:
        """Last of an image's files: from now on it is done."""
        write_record(self.root / "records", record)

    def drop_record(self, task_id: str) -> None:
        """The image is not done after all."""
        (self.root / "records" / f"{task_id}.json").unlink(missing_ok=True)
        self.seal_path(task_id).unlink(missing_ok=True)


class SensitivityFolder:
    """Paths of one sensitivity run's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.request_path = root / "request.json"
        self.samples_path = root / "samples.npz"
        self.results_path = root / "results.json"
        self.csv_path = root / "results.csv"
        self.report_path = root / "report.html"
        self.records_dir = root / "records"

    def shard_path(self, task_id: str) -> Path:
        """Per-sample values of one (layer, bits)."""
        return self.root / "shards" / f"{task_id}.npz"

    def read_request(self) -> RequestFile | None:
        """What was asked for; None if nothing was."""
        return _read(self.request_path, RequestFile)

    def require_request(self) -> RequestFile:
        """What was asked for."""
        request = self.read_request()
        if request is None:
            raise InputError(f"{self.request_path} is missing; run `producer enqueue-sensitivity` again")
        return request

    def write_request(self, request: RequestFile) -> None:
        """Say what is asked for, beside what was asked before.

        Layers keep the order of the forward pass only if the caller gives them all in it.
        """
        write_atomically(self.request_path, _encode(request))


def read_records(folder: Path) -> dict[str, Record]:
    """Records in a folder, by task id; an unreadable one means not done."""
    records = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = decode_record(path.read_bytes())
        except ShardCorruptError:
            continue
        if record.id == path.stem:
            records[record.id] = record
    return records


def write_record(folder: Path, record: Record) -> None:
    """Keep a record beside what it vouches for."""
    write_atomically(folder / f"{record.id}.json", encode_record(record))


def union_in_order(order: Sequence[str], *parts: Sequence[str]) -> tuple[str, ...]:
    """All of `parts`, once each, in the order given."""
    wanted = {name for part in parts for name in part}
    return tuple(name for name in order if name in wanted)


def _encode(struct: Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(struct), indent=2) + b"\n"


def _read(path: Path, kind: type[AnyStruct]) -> AnyStruct | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InputError(f"{path} can't be read: {error}; restore it, or use another --calib-dir") from None


def _difference(old: RunFile, new: RunFile) -> str:
    before, after = msgspec.to_builtins(old.settings), msgspec.to_builtins(new.settings)
    names = [name for name in before if before[name] != after[name]]
    return ", ".join(
        "prompts" if name == "prompts_sha256" else f"{name} ({before[name]}, now {after[name]})"
        for name in names
    )
