"""The heatmap of layers and bits: text and colour of each cell, for every bucket."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from producer.report.formatting import cosine, decibel, error_with_interval, percent_digits, significant
from producer.results.results import BUCKET_NAMES, Measurement, Metrics, Results

COLOURS = 64
MAX_DECADES = 6

State = Literal["measured", "dead", "missing", "unasked"]


@dataclass(frozen=True, slots=True)
class Scale:
    """A logarithmic scale from relative errors to colours. Its ends are log10 of relative errors."""

    low: float
    high: float

    def index(self, relative_error: float) -> int:
        """Return the colour of a relative error, 0 to COLOURS - 1. Errors off the scale take the end's."""
        if relative_error <= 0:
            return 0
        share = (math.log10(relative_error) - self.low) / (self.high - self.low)
        return min(max(int(share * COLOURS), 0), COLOURS - 1)

    @property
    def decades(self) -> list[tuple[float, str]]:
        """For each power of ten: its position on the bar in percent, and its text."""
        span = self.high - self.low
        inside = range(math.ceil(self.low), math.floor(self.high) + 1)
        return [(100 * (decade - self.low) / span, f"{100 * 10.0**decade:g}%") for decade in inside]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One (layer, bits). `shown` has text, colour class and more for each bucket, None if not measured."""

    bits: int
    state: State
    text: str
    css: str
    hover: str
    shown: tuple[tuple[str, ...] | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The cells of one layer."""

    path: str
    short: str
    shape: tuple[int, int]
    parameters: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The layers of one block."""

    name: str
    rows: tuple[Row, ...]


def scale_of(results: Results) -> Scale:
    """Return the scale over all buckets, so that a colour means the same error in each."""
    errors = [
        metrics.relative_error
        for pair in results.measurements
        for metrics in pair.buckets.values()
        if metrics.relative_error and not pair.dead
    ]
    if not errors:
        return Scale(-3, 0)
    high = math.log10(max(errors))
    # At least a factor of ten, so that small differences do not use all colours.
    low = min(math.log10(min(errors)), high - 1)
    return Scale(max(low, high - MAX_DECADES), high)


def heatmap(results: Results, scale: Scale) -> list[Block]:
    """Return the wanted layers by block, in the order of the forward pass."""
    measured = {(pair.layer, pair.bits): pair for pair in results.measurements}
    missing = {(task.layer, task.bits): task.reason for task in results.missing}
    asked = {layer for layer, _ in (*measured, *missing)}
    blocks: dict[str, list[Row]] = {}
    for layer in results.layers:
        if layer.path not in asked:
            continue
        cells = tuple(
            _cell(layer.path, bits, measured.get((layer.path, bits)), missing.get((layer.path, bits)), scale)
            for bits in results.bits
        )
        row = Row(
            path=layer.path,
            short=layer.place.short,
            shape=layer.shape,
            parameters=layer.parameters,
            cells=cells,
        )
        blocks.setdefault(layer.place.block, []).append(row)
    return [Block(name=name, rows=tuple(rows)) for name, rows in blocks.items()]


def hover_data(blocks: Sequence[Block]) -> list[list[object]]:
    """Return, for each measured cell in document order: layer, bits, whether it is dead, and its values."""
    return [
        [row.path, cell.bits, cell.state == "dead", cell.shown]
        for block in blocks
        for row in block.rows
        for cell in row.cells
        if cell.shown
    ]


def _cell(layer: str, bits: int, pair: Measurement | None, reason: str | None, scale: Scale) -> Cell:
    title = f"{layer} at {bits} bits"
    if pair is None:
        if reason is None:
            return Cell(bits=bits, state="unasked", text="", css="unasked", hover=f"{title}: not asked for")
        return Cell(bits=bits, state="missing", text="?", css="missing", hover=f"{title}: missing, {reason}")
    shown = tuple(_words(pair, pair.buckets.get(bucket), scale) for bucket in BUCKET_NAMES)
    first = shown[0] or ("", "unasked", "")
    everywhere = pair.buckets.get("all")
    noise = ", within the noise floor" if everywhere and everywhere.within_noise else ""
    note = ", dead: it can't influence the output" if pair.dead else noise
    return Cell(
        bits=bits,
        state="dead" if pair.dead else "measured",
        text=first[0],
        css=first[1],
        hover=f"{title}: {', '.join(first[2:4])}{note}",
        shown=shown,
    )


def _words(pair: Measurement, metrics: Metrics | None, scale: Scale) -> tuple[str, ...] | None:
    if metrics is None:
        return None
    error = metrics.relative_error
    if pair.dead:
        text, css = "dead", "dead"
    elif error is None:
        text, css = "n/a", "undefined"
    else:
        text, css = percent_digits(error), f"c{scale.index(error)}"
        if metrics.within_noise:
            text, css = f"≈{text}", "noise"
    return (
        text,
        css,
        error_with_interval(metrics),
        decibel(metrics),
        cosine(metrics.cosine),
        significant(metrics.mse),
        significant(metrics.max_abs),
    )
