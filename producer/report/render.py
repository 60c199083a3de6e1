"""The report: one HTML file that needs no other files and no network.

The same contents always give the same text. All values pass the door for text that others wrote, and are
escaped; the page's security policy forbids loading anything.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from humanfriendly import format_size
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from producer.proof.verdict import FLOOR_MARGIN_DB
from producer.report import formatting
from producer.report.charts import charts_of, predicted_rows, shown_bits
from producer.report.contents import Contents
from producer.report.layers import layer_rows
from producer.report.libraries import charts as chart_library
from producer.report.libraries import tables as table_library
from producer.report.numerics import numerics_warnings
from producer.results.results import BUCKET_NAMES, Results
from shared.printable import printable, printable_lines

TEMPLATES = Path(__file__).parent / "templates"


def render_report(contents: Contents) -> str:
    """Return the HTML of the report."""
    chosen = contents.plan.layers if contents.plan else None
    tables = [layer_rows(contents.card, results, chosen) for results in contents.sensitivities]
    if not tables:
        tables = [layer_rows(contents.card, None, chosen)]
    specs = charts_of(contents, tables[0])
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            contents=contents,
            run=contents.run,
            plan=contents.plan,
            proof=contents.proof,
            full_bytes=2 * contents.plan.parameters if contents.plan else None,
            tables=list(zip(tables, contents.sensitivities or (None,), strict=True)),
            rows_have_unified=any(row.place.block.startswith("unified") for row in tables[0]),
            streams=list(dict.fromkeys(row.place.stream or "outside of blocks" for row in tables[0])),
            roles=list(dict.fromkeys(row.place.role for row in tables[0])),
            charts=_clean(specs),
            shown_bits=shown_bits,
            predicted=predicted_rows(contents),
            warnings=_warnings(contents),
            summary_of=_summary,
            pictures=[
                (pictures.prompt, [(name, _inline(png)) for name, png in pictures.drawn])
                for pictures in (contents.proof.pictures if contents.proof else ())
            ],
            previews=[(prompt, _inline(png)) for prompt, png in contents.previews],
            small=(contents.proof.verdict.verification if contents.proof else contents.run).image_size <= 128,
            margin=FLOOR_MARGIN_DB,
            libraries=[*([chart_library()] if specs else []), *([table_library()] if tables[0] else [])],
            chart_script=Markup(chart_library().script) if specs else None,
            table_script=_inline(table_library().script.encode()) if tables[0] else None,
        )
    )


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    for name in ("percent", "decibel", "duration", "moment", "significant"):
        made.filters[name] = getattr(formatting, name)
    made.filters["breakable"] = _breakable
    made.filters["licence"] = lambda text: escape(printable_lines(text))
    made.filters["count"] = lambda number: f"{number:,}"
    made.filters["size"] = lambda size: format_size(size)
    made.filters["db"] = lambda value: f"{value:.1f}"
    return made


def _breakable(path: str) -> Markup:
    """Allow line breaks after the dots of a path."""
    return Markup(".<wbr>").join(printable(path).split("."))


def _inline(data: bytes) -> Markup:
    """Return bytes as base64, which needs no escaping."""
    return Markup(base64.b64encode(data).decode())


def _clean(value: Any) -> Any:
    """Return a specification whose texts have passed the door."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {key: _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    return value


def _warnings(contents: Contents) -> list[tuple[str, list[str]]]:
    """Return what a reader must know before believing: a sentence, with a list of what it is about."""
    found: list[tuple[str, list[str]]] = [(line, []) for line in contents.unreadable]
    for results in contents.sensitivities:
        found += [(line, []) for line in numerics_warnings(results.hosts)]
        name = f"sensitivity {results.sensitivity_id}"
        found += [
            (f"{name}: {len(labels):,} (layer, bits) missing, {reason}.", labels)
            for reason, labels in _by_reason(
                (task.reason, f"{task.layer} at {task.bits} bits") for task in results.missing
            )
        ]
        found += [
            (f"{name}: {len(labels):,} sketches missing, {reason}. Sketched values are less certain.", labels)
            for reason, labels in _by_reason(
                (sketch.reason, f"sample {sketch.sample}, probes {sketch.probe_batch}")
                for sketch in results.missing_sketches
            )
        ]
    for proof in contents.proofs:
        verdict = proof.verdict
        if not verdict.complete:
            line = (
                f"verification {verdict.verification_id} is not complete: {verdict.prompts} prompts so far."
            )
            found.append((line, []))
        found += [
            (f"{one.name} overflows on {one.overflows} of {verdict.prompts} prompts.", [])
            for one in verdict.variants
            if one.overflows
        ]
    return found


def _by_reason(missing: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Return the labels for each reason, the most common reason first."""
    labels: dict[str, list[str]] = {}
    for reason, label in missing:
        labels.setdefault(reason, []).append(label)
    return sorted(labels.items(), key=lambda item: (-len(item[1]), item[0]))


def _summary(results: Results) -> dict[str, Any]:
    """Return counts of one sensitivity run, and what its sketch is worth."""
    pairs = results.measurements
    shares = [
        pair.standard_error / error
        for pair in pairs
        if pair.standard_error is not None and (error := pair.buckets["all"].relative_error)
    ]
    exact = sum(pair.standard_error is None for pair in pairs)
    steps: dict[str, tuple[int, int]] = {"all": (0, results.run.num_steps)}
    steps.update((name, ends) for name, ends in results.bucket_steps.items())
    return {
        "exact": exact,
        "wanted": exact + len(results.missing),
        "sketched": len(pairs) - exact,
        "noisy": sum(pair.buckets["all"].within_noise and not pair.dead for pair in pairs),
        "dead": sorted({pair.layer for pair in pairs if pair.dead}),
        "typical": median(shares) if shares else None,
        "worst": max(shares, default=None),
        "intervals": any(_has_interval(results, name) for name in BUCKET_NAMES),
        "steps": {name: _span(ends) for name, ends in steps.items()},
    }


def _has_interval(results: Results, bucket: Any) -> bool:
    return any(
        bucket in pair.buckets and pair.buckets[bucket].relative_error_low is not None
        for pair in results.measurements
    )


def _span(ends: Sequence[int]) -> str:
    return (
        "–" if ends[1] <= ends[0] else str(ends[0]) if ends[1] == ends[0] + 1 else f"{ends[0]}–{ends[1] - 1}"
    )
