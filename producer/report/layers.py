"""Every layer as a row of the report's table: its place, what it gets, and its error at each bit width."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from producer.plan.offers import layer_bytes
from producer.report.formatting import NONE, cosine, decibel, error_with_interval, percent
from producer.results.results import BUCKET_NAMES, BucketName, Measurement, Results
from shared.layer_place import LayerPlace, place_by_number
from shared.metrics import BUCKETS
from shared.model_card import ModelCard
from shared.plan import Choice

AS_IT_IS = "as it is"

Mark = Literal["exact", "estimated", "within noise", "dead", "missing", "not asked for", "undefined"]
UNRANKED: Mapping[Mark, float] = {"within noise": 0.0, "dead": -1.0, "missing": -2.0, "undefined": -2.0}
"""Where a table is sorted, all such cells are equal, and below all errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One (layer, bits)."""

    text: str
    mark: Mark
    order: float
    note: str
    """For the pointer: what else is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One layer."""

    number: int
    """Position in the forward pass, from 1."""
    path: str
    place: LayerPlace
    shape: tuple[int, int]
    choice: str
    """Of the plan; empty without one."""
    stored_bytes: int
    cells: tuple[Cell, ...]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]


def layer_rows(
    card: ModelCard | None, results: Results | None, chosen: Mapping[str, Choice] | None
) -> list[Row]:
    """Return a row for each layer of the model, in the order of the forward pass.

    Args:
        card: without one, the layers are those of `results`.
        results: without them, rows have no cells.
        chosen: the choices of a plan, if there is one.
    """
    if results is not None:
        layers = [(layer.path, layer.place, layer.shape) for layer in results.layers]
    else:
        known = card.layers if card else ()
        layers = [(layer.path, layer.place or place_by_number(layer.path), layer.shape) for layer in known]
    pairs, reasons = _by_pair(results)
    rows = []
    for number, (path, place, shape) in enumerate(layers, start=1):
        choice = chosen.get(path) if chosen is not None else None
        rows.append(
            Row(
                number=number,
                path=path,
                place=place,
                shape=shape,
                choice="" if chosen is None else choice.label if choice else AS_IT_IS,
                stored_bytes=layer_bytes(shape, choice),
                cells=tuple(
                    _cell(pairs.get((path, bits)), reasons.get((path, bits)))
                    for bits in (results.bits if results else ())
                ),
            )
        )
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One (layer, bits, bucket) of the heatmap."""

    layer: int
    """Index of the layer."""
    bits: int
    bucket: BucketName
    error: float | None
    """Relative error; None where there is none to show a colour for."""
    mark: Mark


def spots(results: Results, buckets: Sequence[BucketName] = BUCKETS) -> Iterator[Spot]:
    """Yield every wanted (layer, bits) in each of these buckets."""
    pairs, reasons = _by_pair(results)
    for index, layer in enumerate(results.layers):
        for bits in results.bits:
            pair, reason = pairs.get((layer.path, bits)), reasons.get((layer.path, bits))
            if pair is None and reason is None:
                continue
            for bucket in buckets:
                if pair is None or bucket in pair.buckets:
                    mark = mark_of(pair, bucket) if pair else "missing"
                    shown = pair is not None and mark in ("exact", "estimated")
                    error = pair.buckets[bucket].relative_error if pair and shown else None
                    yield Spot(layer=index, bits=bits, bucket=bucket, error=error, mark=mark)


def mark_of(pair: Measurement, bucket: BucketName = "all") -> Mark:
    """Return what is to be thought of an error."""
    metrics = pair.buckets.get(bucket)
    if pair.dead:
        return "dead"
    if metrics is None or metrics.relative_error is None:
        return "undefined"
    if metrics.within_noise:
        return "within noise"
    return "exact" if pair.standard_error is None else "estimated"


def _by_pair(
    results: Results | None,
) -> tuple[dict[tuple[str, int], Measurement], dict[tuple[str, int], str]]:
    if results is None:
        return {}, {}
    return (
        {(pair.layer, pair.bits): pair for pair in results.measurements},
        {(task.layer, task.bits): task.reason for task in results.missing},
    )


def _cell(pair: Measurement | None, reason: str | None) -> Cell:
    if pair is None:
        if reason is None:
            return Cell(text=NONE, mark="not asked for", order=-3.0, note="not asked for")
        return Cell(text="missing", mark="missing", order=UNRANKED["missing"], note=reason)
    mark, metrics = mark_of(pair), pair.buckets["all"]
    text = {"dead": "dead", "undefined": NONE}.get(mark) or error_with_interval(metrics)
    parts = [
        f"{name} {percent(pair.buckets[name].relative_error)}"
        for name in BUCKET_NAMES[1:]
        if name in pair.buckets and mark != "dead"
    ]
    if pair.standard_error is not None:
        parts.append(f"standard error {percent(pair.standard_error)}")
    else:
        parts += [f"SQNR {decibel(metrics)}", f"cosine {cosine(metrics.cosine)}"]
    return Cell(
        text=text,
        mark=mark,
        order=UNRANKED.get(mark, metrics.relative_error or 0.0),
        note=", ".join(parts),
    )
