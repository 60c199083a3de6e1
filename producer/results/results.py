"""Results: what results.json, results.csv and the report say of one sensitivity run.

Pure functions: the same input gives the same bytes, and nothing here writes a file.
"""

import csv
import io
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from shared.errors import InputError
from shared.layer_place import LayerPlace
from shared.metrics import BUCKETS, Bucket
from shared.runs import RunSettings, SensitivitySettings

FORMAT = 2
"""Raised when the meaning of a field changes."""

BucketName = Literal["all"] | Bucket
BUCKET_NAMES: tuple[BucketName, ...] = ("all", *BUCKETS)
TaskKind = Literal["calibration", "sensitivity", "sketch"]


class Metrics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one (layer, bits) in one bucket; None where a value is infinite or undefined.

    No error at all reads: relative_error 0.0, sqnr_db None. A zero reference: both None.
    """

    samples: int
    mse: float
    relative_error: float | None
    relative_error_low: float | None
    """Lower end of the interval; None where there were too few images for one."""
    relative_error_high: float | None
    sqnr_db: float | None
    cosine: float | None
    """Mean over samples; None in a sketch."""
    max_abs: float | None
    """Largest difference of an element; None in a sketch."""
    noise_relative_error: float | None
    """The same measurement with nothing but the last bits of a nearby layer's weight changed; None in a
    sketch, and where it was not measured."""
    within_noise: bool = False
    """At most twice the noise floor: this says nothing of the layer, and ranks it nowhere."""


class Measurement(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One finished (layer, bits)."""

    layer: str
    bits: int
    bits_per_weight: float
    """Bits, plus a scale and a bias a group, of 16 bits each: as a quantized model is shipped."""
    dead: bool
    """This layer can't influence the output: not the same as insensitive."""
    weight_relative_error: float | None
    """||W_quantized - W|| / ||W||."""
    standard_error: float | None = None
    """Of a sketched relative error over all samples, from the choice of probes; None: measured exactly."""
    host: str
    """Empty in a sketch, which no one host makes."""
    seconds: float
    buckets: dict[BucketName, Metrics]
    """A bucket without samples is absent."""


class LayerRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One quantizable layer of the model, asked for or not."""

    path: str
    shape: tuple[int, int]
    """(outputs, inputs) of the weight."""
    parameters: int
    """Of the weight alone: a bias is not quantized."""
    place: LayerPlace


class MissingTask(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A (layer, bits) that was asked for and is not there."""

    layer: str
    bits: int
    reason: str


class MissingSketch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sample's probes that were asked for and are not there: all sketched values are the less certain."""

    sample: int
    """Place in the sample set."""
    probe_group: int
    reason: str


class VerifiedPair(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A (layer, bits) that was both sketched and measured exactly."""

    layer: str
    bits: int
    sketch_relative_error: float | None
    sketch_standard_error: float | None
    exact_relative_error: float | None


class NoiseFloor(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Relative error when nothing but last bits changed, over all pairs, in the precision of measuring."""

    median: float | None
    maximum: float | None


class HostTimings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one host did."""

    host: str
    kind: TaskKind
    tasks: int
    workers: int
    seconds_total: float
    seconds_median: float
    first_finished_at: str
    """UTC, ISO 8601."""
    last_finished_at: str
    versions: dict[str, str]
    """By name; several, joined by " and ", where they changed during the run."""


class Intervals(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the intervals were made: by Student's t over images, see shared.metrics."""

    level: float
    min_images: int
    """A pair that was measured on fewer has no interval."""


class Results(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One sensitivity run, as far as it has been collected."""

    format: int = FORMAT
    run_id: str
    sensitivity_id: str
    complete: bool
    """Nothing that was asked for is missing."""
    run: RunSettings
    sensitivity: SensitivitySettings
    fingerprint: str
    """sha256 over the model's files."""
    model_parameters: int
    """Of the whole transformer."""
    images: int
    """That were measured on; the largest number over all pairs."""
    samples: int
    bits: tuple[int, ...]
    """All that were asked for."""
    bucket_steps: dict[Bucket, tuple[int, int]]
    """First step, and the one after the last."""
    intervals: Intervals
    noise_floor: dict[BucketName, NoiseFloor]
    layers: tuple[LayerRow, ...]
    """All of the model, in the order of the forward pass."""
    measurements: tuple[Measurement, ...]
    """In the order of the layers, then by bits."""
    missing: tuple[MissingTask, ...]
    """To be measured exactly; in the same order."""
    missing_sketches: tuple[MissingSketch, ...] = ()
    """In the order of the samples."""
    sketches: int = 0
    """Samples times probe groups that the sketched values are made of."""
    verified: tuple[VerifiedPair, ...] = ()
    """Where a sketch can be held against exact measurements."""
    hosts: tuple[HostTimings, ...]


_decoder = msgspec.json.Decoder(Results)


def encode_results(results: Results) -> bytes:
    """JSON of results, fields in their declared order, indented."""
    return msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n"


def decode_results(data: bytes) -> Results:
    """Read back results.json.

    Raises:
        InputError: not results of this format.
    """
    try:
        results = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InputError(f"not results that this revision knows: {error}") from None
    if results.format != FORMAT:
        raise InputError(f"results of format {results.format}; this revision knows format {FORMAT}")
    return results


_CSV_LAYER = ("layer", "group", "stream", "kind", "outputs", "inputs", "parameters")
_CSV_PAIR = ("bits", "bits_per_weight", "dead", "weight_relative_error")


def results_csv(results: Results) -> str:
    """One row a (layer, bits, bucket); an empty cell is a value that is infinite or undefined."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow((*_CSV_LAYER, *_CSV_PAIR, "bucket", *Metrics.__struct_fields__))
    rows = {row.path: row for row in results.layers}
    for pair in results.measurements:
        row = rows[pair.layer]
        place = row.place
        layer = (row.path, place.block, place.stream, place.role, *row.shape, row.parameters)
        candidate = (pair.bits, pair.bits_per_weight, int(pair.dead), pair.weight_relative_error)
        for bucket, metrics in pair.buckets.items():
            cells = (int(cell) if cell is True or cell is False else cell for cell in astuple(metrics))
            writer.writerow((*layer, *candidate, bucket, *cells))
    return buffer.getvalue()
