"""The results of a sensitivity run: the content of results.json, results.csv and the report.

The same results always give the same bytes. Nothing here writes a file.
"""

import csv
import io
from typing import Literal

import msgspec
from msgspec import Struct, field
from msgspec.structs import astuple

from shared.decoding import decode
from shared.errors import InputError
from shared.layer_place import LayerPlace
from shared.metrics import BUCKETS, Bucket
from shared.runs import RunSettings, SensitivitySettings

FORMAT = 2
"""Increased when the meaning of a field changes."""

BucketName = Literal["all"] | Bucket
BUCKET_NAMES: tuple[BucketName, ...] = ("all", *BUCKETS)


class Metrics(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The metrics of one (layer, bits) in one bucket. Infinite and undefined values are None.

    Without any error, relative_error is 0 and sqnr_db is None. With a zero reference both are None.
    """

    samples: int
    mse: float
    relative_error: float | None
    relative_error_low: float | None
    """Lower end of the interval; None if there are too few images."""
    relative_error_high: float | None
    sqnr_db: float | None
    cosine: float | None
    """Mean over the samples; None in a sketch."""
    max_abs: float | None
    """Largest difference of any element; None in a sketch."""
    noise_relative_error: float | None
    """The relative error when only the last bits of a nearby layer's weight are changed; None in a sketch,
    and if it was not measured."""
    within_noise: bool = False
    """The error is at most twice the noise floor: it says nothing about the layer, which is not ranked."""


class Measurement(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The results of one (layer, bits)."""

    layer: str
    bits: int
    bits_per_weight: float
    """Bits stored per weight in a shipped model: a scale and a bias per group take 16 bits each."""
    dead: bool
    """This layer can't influence the output. That is not the same as being insensitive."""
    weight_relative_error: float | None
    """||W_quantized - W|| / ||W||."""
    standard_error: float | None = None
    """Standard error of a sketched relative error, from the choice of probes; None if measured exactly."""
    host: str
    """Empty in a sketch, which several hosts can share."""
    seconds: float
    buckets: dict[BucketName, Metrics]
    """Metrics by bucket. A bucket without samples is left out."""


class LayerRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One quantizable layer of the model, wanted or not."""

    path: str
    shape: tuple[int, int]
    """(outputs, inputs) of the weight."""
    parameters: int
    """Number of weights, without the bias, which is not quantized."""
    place: LayerPlace


class MissingTask(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A wanted (layer, bits) that is not measured."""

    layer: str
    bits: int
    reason: str


class MissingSketch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A wanted sketch that is not done. All sketched values are less certain without it."""

    sample: int
    """Index in the sample set."""
    probe_batch: int = field(name="probe_group")
    reason: str


class VerifiedPair(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A (layer, bits) that was both sketched and measured exactly."""

    layer: str
    bits: int
    sketch_relative_error: float | None
    sketch_standard_error: float | None
    exact_relative_error: float | None


class NoiseFloor(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Relative error when only the last bits of a weight are changed, over all pairs."""

    median: float | None
    maximum: float | None


class HostTimings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one host did."""

    host: str
    kind: str
    """Of the tasks, as in shared.kinds."""
    tasks: int
    workers: int
    seconds_total: float
    seconds_median: float
    first_finished_at: str
    """UTC, ISO 8601."""
    last_finished_at: str
    versions: dict[str, str]
    """Versions by name. Several are joined by " and " if they changed during the run."""


class Intervals(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the intervals were computed: by Student's t over images, see shared.metrics."""

    level: float
    min_images: int
    """A pair measured on fewer images has no interval."""


class Results(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The results of one sensitivity run, as far as it is collected."""

    format: int = FORMAT
    run_id: str
    sensitivity_id: str
    complete: bool
    """Whether nothing is missing."""
    run: RunSettings
    sensitivity: SensitivitySettings
    fingerprint: str
    """sha256 of the model's files."""
    model_parameters: int
    """Number of parameters of the whole transformer."""
    images: int
    """Number of images measured on; the largest over all pairs."""
    samples: int
    bits: tuple[int, ...]
    """All wanted bit widths."""
    bucket_steps: dict[Bucket, tuple[int, int]]
    """For each bucket, its first step and the one after its last."""
    intervals: Intervals
    noise_floor: dict[BucketName, NoiseFloor]
    layers: tuple[LayerRow, ...]
    """All quantizable layers, in the order of the forward pass."""
    measurements: tuple[Measurement, ...]
    """In the order of the layers, then by bits."""
    missing: tuple[MissingTask, ...]
    """Exact measurements that are missing, in the same order."""
    missing_sketches: tuple[MissingSketch, ...] = ()
    """In the order of the samples."""
    sketches: int = 0
    """Number of finished sketch tasks."""
    verified: tuple[VerifiedPair, ...] = ()
    """Pairs with both a sketched and an exact value."""
    hosts: tuple[HostTimings, ...]


_decoder = msgspec.json.Decoder(Results)


def encode_results(results: Results) -> bytes:
    """Return results as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n"


def decode_results(data: bytes) -> Results:
    """Return the results that `encode_results` wrote.

    Raises:
        InputError: these are no results of this format.
    """
    results = decode(_decoder, data, InputError, "not results that this revision knows")
    if results.format != FORMAT:
        raise InputError(f"results of format {results.format}; this revision knows format {FORMAT}")
    return results


_CSV_LAYER = ("layer", "block", "stream", "role", "outputs", "inputs", "parameters")
_CSV_PAIR = ("bits", "bits_per_weight", "dead", "weight_relative_error")


def results_csv(results: Results) -> str:
    """Return a CSV with one line per (layer, bits, bucket). Infinite and undefined values are empty cells."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow((*_CSV_LAYER, *_CSV_PAIR, "bucket", *Metrics.__struct_fields__))
    layers = {layer.path: layer for layer in results.layers}
    for pair in results.measurements:
        layer = layers[pair.layer]
        place = layer.place
        about = (layer.path, place.block, place.stream, place.role, *layer.shape, layer.parameters)
        candidate = (pair.bits, pair.bits_per_weight, int(pair.dead), pair.weight_relative_error)
        for bucket, metrics in pair.buckets.items():
            cells = (int(cell) if cell is True or cell is False else cell for cell in astuple(metrics))
            writer.writerow((*about, *candidate, bucket, *cells))
    return buffer.getvalue()
