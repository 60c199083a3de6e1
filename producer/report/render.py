"""The report: one HTML file that needs no other files and no network.

The same results and previews always give the same text. All values are escaped, and the page's security
policy forbids loading anything.
"""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from producer.report import formatting
from producer.report.averages import by_depth, by_kind
from producer.report.charts import averages_chart, viridis
from producer.report.heatmap import COLOURS, heatmap, hover_data, scale_of
from producer.report.numerics import numerics_warnings
from producer.results.results import BUCKET_NAMES, LayerRow, Measurement, Results
from shared.metrics import most_sensitive

MOST_SENSITIVE = 20
TEMPLATES = Path(__file__).parent / "templates"

Preview = tuple[str, bytes]
"""Caption and PNG."""


def render_report(results: Results, previews: Sequence[Preview] = ()) -> str:
    """Return the HTML of the report.

    Args:
        results: may be incomplete; missing tasks are shown with the reason.
        previews: caption and PNG of each image to show.
    """
    scale = scale_of(results)
    blocks = heatmap(results, scale)
    depth, kinds = by_depth(results), by_kind(results)
    rank_bits = _rank_bits(results)
    measured = sum(pair.standard_error is None for pair in results.measurements)
    colours = viridis(COLOURS)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            results=results,
            blocks=blocks,
            hover_data=hover_data(blocks),
            buckets=_buckets(results),
            scale=scale,
            colours=list(zip(colours, map(_ink_on, colours), strict=True)),
            series_light=viridis(len(results.bits), 0.0, 0.82),
            series_dark=viridis(len(results.bits), 0.38, 1.0),
            dead=sorted({pair.layer for pair in results.measurements if pair.dead}),
            measured=measured,
            wanted=measured + len(results.missing),
            sketched=len(results.measurements) - measured,
            has_intervals=any(
                metrics.relative_error_low is not None
                for pair in results.measurements
                for metrics in pair.buckets.values()
            ),
            rank_bits=rank_bits,
            ranking=_ranking(results, rank_bits),
            noisy=_noisy(results),
            noisy_at_rank_bits=_noisy(results, rank_bits),
            missing=_by_reason(
                (task.reason, f"{task.layer} at {task.bits} bits") for task in results.missing
            ),
            missing_sketches=_by_reason(
                (sketch.reason, f"sample {sketch.sample}, probes {sketch.probe_batch}")
                for sketch in results.missing_sketches
            ),
            kinds=kinds,
            sketch=_sketch(results),
            numerics=numerics_warnings(results.hosts),
            chart=Markup(averages_chart(depth, kinds, results.bits)) if kinds else None,
            previews=[(caption, base64.b64encode(png).decode()) for caption, png in previews],
        )
    )


def environment() -> Environment:
    """Return the templates, with the filters that format numbers."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in ("percent", "error_with_interval", "decibel", "duration", "moment", "significant", "cosine"):
        made.filters[name] = getattr(formatting, name)
    made.filters["breakable"] = _breakable
    made.filters["count"] = lambda number: f"{number:,}"
    return made


def _breakable(path: str) -> Markup:
    """Allow line breaks after the dots of a path."""
    return Markup(".<wbr>").join(path.split("."))


def _buckets(results: Results) -> list[dict[str, Any]]:
    """Return name, first and last step of each bucket, and whether anything was measured in it."""
    steps: dict[str, tuple[int, int]] = {"all": (0, results.run.num_steps)}
    steps |= {bucket: ends for bucket, ends in results.bucket_steps.items()}  # noqa: C416 - widens the key type
    return [
        {
            "name": name,
            "first": steps[name][0],
            "last": steps[name][1] - 1,
            "measured": any(name in pair.buckets for pair in results.measurements),
        }
        for name in BUCKET_NAMES
    ]


def _sketch(results: Results) -> dict[str, float] | None:
    """Return how many pairs are sketched, and their relative standard errors; None if none are sketched."""
    shares = [
        pair.standard_error / error
        for pair in results.measurements
        if pair.standard_error is not None and (error := pair.buckets["all"].relative_error)
    ]
    return {"pairs": len(shares), "typical": median(shares), "worst": max(shares)} if shares else None


def _rank_bits(results: Results) -> int | None:
    """Return the bit width to rank by: 4, where plans differ most, or the smallest if 4 is missing."""
    measured = {pair.bits for pair in results.measurements}
    return 4 if 4 in measured else min(measured, default=None)


def _ranking(results: Results, bits: int | None) -> list[tuple[LayerRow, dict[int, Measurement]]]:
    """Return the most sensitive layers, with their measurements by bits."""
    by_layer: dict[str, dict[int, Measurement]] = {}
    for pair in results.measurements:
        by_layer.setdefault(pair.layer, {})[pair.bits] = pair
    scores = [
        (pair.layer, pair.buckets["all"].relative_error)
        for pair in results.measurements
        if pair.bits == bits and not pair.dead and not pair.buckets["all"].within_noise
    ]
    rows = {layer.path: layer for layer in results.layers}
    return [(rows[path], by_layer[path]) for path in most_sensitive(scores, MOST_SENSITIVE)]


def _noisy(results: Results, bits: int | None = None) -> int:
    """Count the pairs (of these bits, or of all) that are within twice the noise floor and not dead."""
    return sum(
        pair.buckets["all"].within_noise and not pair.dead
        for pair in results.measurements
        if bits is None or pair.bits == bits
    )


def _by_reason(missing: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Return the labels for each reason, the most common reason first."""
    labels: dict[str, list[str]] = {}
    for reason, label in missing:
        labels.setdefault(reason, []).append(label)
    return sorted(labels.items(), key=lambda item: (-len(item[1]), item[0]))


def _ink_on(colour: str) -> str:
    """Return black or white, whichever has more contrast (WCAG 2 relative luminance)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000" if luminance > 0.179 else "#fff"
