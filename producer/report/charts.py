"""The charts of the report, as specifications for Vega-Lite (version 5).

Texts, rules and plain marks take the page's colours, light or dark, on screen or paper, because their colours
are named as in a style sheet. What a chart shows stands in a table of the page, too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from producer.report.contents import Contents, Proof
from producer.report.estimates import Estimates, Point
from producer.report.formatting import percent
from producer.report.layers import Row, Spot, spots
from producer.results.results import Results
from shared.metrics import BUCKETS
from shared.plan import Choice

Spec = dict[str, Any]

KINDS = {
    "plan, measured": ("var(--accent)", "circle"),
    "uniform, measured": ("var(--second)", "square"),
    "other rival, measured": ("var(--soft)", "triangle-up"),
    "uniform, estimated": ("var(--second-pale)", "square"),
}
_CONFIG: Spec = {
    "background": None,
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
    # The page says what a chart shows; a screen reader is spared a thousand marks.
    "aria": False,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "gridColor": "var(--rule)",
        "domainColor": "var(--rule)",
        "tickColor": "var(--rule)",
        "labelFontSize": 11,
        "titleFontWeight": "normal",
        "titleFontSize": 12,
    },
    "legend": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "labelLimit": 240,
    },
}


def charts_of(contents: Contents, rows: Sequence[Row]) -> dict[str, Spec]:
    """Return all charts that there is something to show in, by the id of their place in the page."""
    found: dict[str, Spec | None] = {
        "chart-sizes": sizes_chart(contents.proofs, contents.estimates),
        "chart-predicted": predicted_chart(predicted_rows(contents)),
        "chart-strip": strip_chart(rows, contents.plan.layers) if contents.plan else None,
    }
    for index, results in enumerate(contents.sensitivities):
        for bucket in BUCKETS:
            found[f"chart-heat-{index}-{bucket}"] = heat_chart(results, bucket)
    return {name: spec for name, spec in found.items() if spec is not None}


def sizes_chart(proofs: Sequence[Proof], estimates: Estimates | None) -> Spec | None:
    """Return bits a weight against the error of the final latent: measured, and estimated for every size."""
    measured = [
        _point(
            one.name,
            8 * one.stored_bytes / proof.plan.parameters,
            one.stored_bytes,
            proof.errors[one.name],
            _kind(one.name),
        )
        for proof in proofs
        for one in proof.verdict.variants
    ]
    uniform = [
        _point(one.name, one.bits_per_weight, one.stored_bytes, one.error, "uniform, estimated")
        for one in (estimates.uniform if estimates else ())
    ]
    points = [point for point in (*uniform, *measured) if point["error"] > 0]
    largest = max((point["bits"] for point in points), default=math.inf)
    frontier = [
        _frontier_point(one)
        for one in (estimates.frontier if estimates else ())
        if one.error > 0 and one.bits_per_weight <= largest
    ]
    if not points and not frontier:
        return None
    shown = [kind for kind in KINDS if any(point["kind"] == kind for point in points)]
    x = {"field": "bits", "type": "quantitative", "title": "bits a weight", "scale": {"zero": False}}
    y = {
        "field": "error",
        "type": "quantitative",
        "title": "error of the final latent, %",
        "scale": {"type": "log"},
        "axis": {"format": "~g", "tickCount": 5},
    }
    tooltip = [
        {"field": name, "title": title}
        for name, title in (("name", "model"), ("kind", "how"), ("bitsText", "bits a weight"))
    ] + [{"field": "size", "title": "size"}, {"field": "errorText", "title": "error"}]
    layers: list[Spec] = []
    if frontier:
        layers.append(
            {
                "data": {"values": frontier},
                "mark": {"type": "line", "color": "var(--accent)", "strokeDash": [5, 3], "strokeWidth": 1.5},
                "encoding": {"x": x, "y": y},
            }
        )
    if points:
        layers.append(
            {
                "data": {"values": points},
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": {
                        "field": "kind",
                        "scale": {"domain": shown, "range": [KINDS[kind][0] for kind in shown]},
                        "legend": {"title": None, "orient": "top", "columns": 2},
                    },
                    "shape": {
                        "field": "kind",
                        "scale": {"domain": shown, "range": [KINDS[kind][1] for kind in shown]},
                    },
                    "tooltip": tooltip,
                },
            }
        )
    return _spec(layer=layers, height=210)


def predicted_rows(contents: Contents) -> list[Spec]:
    """Return, for each variant of the newest proof, its predicted and its measured error.

    The prediction is that of `producer enqueue-confirm`, made on prompts of its own; without one it is the
    sum of the scores, which is too good for the plan that was chosen by them.
    """
    proof = contents.proof
    if proof is None:
        return []
    results = {one.name: one for one in proof.verdict.variants}
    found = []
    for variant in proof.variants:
        error = proof.errors[variant.name]
        told = results[variant.name].predicted if variant.name in results else None
        low = high = None
        if told is not None:
            expected: float | None = 10 ** (-told.median_db / 20)
            low, high = 10 ** (-told.high_db / 20), 10 ** (-told.low_db / 20)
        else:
            expected = contents.estimates.error(variant.layers) if contents.estimates else None
        if expected is not None:
            found.append(
                {
                    "name": variant.name,
                    "kind": _kind(variant.name),
                    "predicted": expected,
                    "low": low,
                    "high": high,
                    "measured": error,
                    "by": "confirmation" if told else "scores",
                }
            )
    return found


def predicted_chart(rows: Sequence[Spec]) -> Spec | None:
    """Return predicted against measured errors, with the line on which both are equal."""
    points = [
        row
        | {name: 100 * row[name] for name in ("predicted", "measured")}
        | {"text": f"predicted {percent(row['predicted'])}, measured {percent(row['measured'])}"}
        for row in rows
        if row["predicted"] > 0 and row["measured"] > 0
    ]
    if not points:
        return None
    every = [point[name] for point in points for name in ("predicted", "measured")]
    low, high = min(every) / 1.15, max(every) * 1.15
    shown = [kind for kind in KINDS if any(point["kind"] == kind for point in points)]

    def axis(name: str, title: str) -> Spec:
        return {
            "field": name,
            "type": "quantitative",
            "title": title,
            "scale": {"type": "log", "domain": [low, high], "nice": False},
            "axis": {"format": "~g", "tickCount": 5},
        }

    x, y = axis("predicted", "predicted, %"), axis("measured", "measured, %")
    return _spec(
        height=210,
        layer=[
            {
                "data": {"values": [{"predicted": end, "measured": end} for end in (low, high)]},
                "mark": {"type": "line", "color": "var(--soft)", "strokeDash": [3, 3], "strokeWidth": 1},
                "encoding": {"x": x, "y": y},
            },
            {
                "data": {"values": points},
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": {
                        "field": "kind",
                        "scale": {"domain": shown, "range": [KINDS[kind][0] for kind in shown]},
                        "legend": {"title": None, "orient": "top"},
                    },
                    "shape": {
                        "field": "kind",
                        "scale": {"domain": shown, "range": [KINDS[kind][1] for kind in shown]},
                    },
                    "tooltip": [{"field": "name", "title": "model"}, {"field": "text", "title": "error"}],
                },
            },
        ],
    )


def strip_chart(rows: Sequence[Row], chosen: Mapping[str, Choice]) -> Spec | None:
    """Return the bits of each layer: blocks from left to right, kinds of layers from top to bottom."""
    if not rows:
        return None
    values = [
        {
            "block": _block(row),
            "kind": _line(row),
            "bits": str(choice.bits) if (choice := chosen.get(row.path)) else "16",
            "text": row.choice,
            "path": row.path,
            "size": f"{row.stored_bytes:,} bytes",
        }
        for row in rows
    ]
    bits = sorted({value["bits"] for value in values}, key=int)
    labels = "datum.value == '16' ? 'as it is' : datum.value"
    tooltip = [
        {"field": "path", "title": "layer"},
        {"field": "text", "title": "bits/group size"},
        {"field": "size", "title": "size"},
    ]
    place = _places(rows)
    return _spec(
        height=17 * len(place["y"]["scale"]["domain"]),
        data={"values": values},
        layer=[
            {
                "mark": {"type": "rect", "stroke": "var(--card)", "strokeWidth": 1},
                "encoding": place
                | {
                    "color": {
                        "field": "bits",
                        "scale": {"domain": bits, "scheme": "viridis"},
                        "legend": {
                            "title": "bits",
                            "orient": "top",
                            "symbolType": "square",
                            "labelExpr": labels,
                        },
                        "sort": bits,
                    },
                    "tooltip": tooltip,
                },
            },
            {
                "mark": {
                    "type": "text",
                    "fontSize": 10,
                    "opacity": {"expr": "bandwidth('x') > 13 ? 1 : 0"},
                    "tooltip": None,
                },
                "encoding": place
                | {
                    "text": {"field": "bits"},
                    "color": {
                        "condition": {
                            "test": f"indexof({bits!r}, datum.bits) * 2 < {len(bits)}",
                            "value": "#fff",
                        },
                        "value": "#000",
                    },
                    "tooltip": tooltip,
                },
            },
        ],
    )


def heat_chart(results: Results, bucket: str) -> Spec | None:
    """Return the relative errors of a third of the steps, at the bit width that the page's switch says."""
    found = [spot for spot in spots(results) if spot.bucket == bucket]
    if not found:
        return None
    every = [spot.error for spot in spots(results, ("all", *BUCKETS)) if spot.error]
    low, high = (min(every), max(every)) if every else (1e-3, 1.0)
    rows = [layer.place for layer in results.layers]
    layers = [
        {"n": index, "path": layer.path, "block": rows[index].block, "kind": _line_of(rows[index])}
        for index, layer in enumerate(results.layers)
    ]
    asked = {spot.layer for spot in found}
    blocks = list(dict.fromkeys(layer["block"] for layer in layers if layer["n"] in asked))
    kinds = _sorted_lines([rows[index] for index in sorted(asked)])
    domain = [100 * max(low, high / 1e6), 100 * max(high, 10 * low)]
    return _spec(
        params=[{"name": "bits", "value": shown_bits(results)}],
        height=14 * len(kinds),
        data={"values": [_heat_value(spot) for spot in found]},
        transform=[
            {"filter": "datum.b == bits"},
            {
                "lookup": "n",
                "from": {
                    "data": {"values": layers},
                    "key": "n",
                    "fields": ["path", "block", "kind"],
                },
            },
        ],
        mark={"type": "rect", "stroke": "var(--card)", "strokeWidth": 1},
        encoding={
            "x": {
                "field": "block",
                "type": "ordinal",
                "scale": {"domain": blocks},
                "axis": _block_axis(),
            },
            "y": {"field": "kind", "type": "ordinal", "scale": {"domain": kinds}, "title": None},
            "color": {
                "condition": [
                    {"test": "datum.m == 'dead'", "value": "var(--hatch)"},
                    {"test": "datum.m == 'missing'", "value": "var(--warn-edge)"},
                    {"test": "!isValid(datum.e)", "value": "var(--hatch-back)"},
                ],
                "field": "e",
                "type": "quantitative",
                "scale": {"type": "log", "scheme": "viridis", "domain": domain, "clamp": True},
                "legend": {
                    "title": "relative error, %",
                    "orient": "top",
                    "format": "~g",
                    "gradientLength": 180,
                    "tickCount": 4,
                },
            },
            "tooltip": [
                {"field": "path", "title": "layer"},
                {"field": "b", "title": "bits"},
                {"field": "e", "title": "relative error, %"},
                {"field": "m", "title": "how"},
            ],
        },
    )


def shown_bits(results: Results) -> int:
    """Return the bit width that the heatmap starts with: 4, where plans differ most, or the smallest."""
    return 4 if 4 in results.bits else min(results.bits, default=4)


def _heat_value(spot: Spot) -> Spec:
    error = None if spot.error is None else float(f"{100 * spot.error:.3g}")
    return {"n": spot.layer, "b": spot.bits, "e": error or None, "m": spot.mark}


def _spec(**parts: Any) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": _CONFIG,
    } | parts


def _point(name: str, bits: float, stored: int, error: float, kind: str) -> Spec:
    return {
        "name": name,
        "kind": kind,
        "bits": round(bits, 4),
        "bitsText": f"{bits:.2f}",
        "size": f"{stored:,} bytes",
        "error": float(f"{100 * error:.4g}"),
        "errorText": percent(error),
    }


def _frontier_point(point: Point) -> Spec:
    return {"bits": round(point.bits_per_weight, 4), "error": float(f"{100 * point.error:.4g}")}


def _kind(name: str) -> str:
    if name == "plan":
        return "plan, measured"
    return "uniform, measured" if name.startswith("uniform ") else "other rival, measured"


def _places(rows: Sequence[Row]) -> Spec:
    blocks = list(dict.fromkeys(map(_block, rows)))
    kinds = _sorted_lines([row.place for row in rows])
    return {
        "x": {"field": "block", "type": "ordinal", "scale": {"domain": blocks}, "axis": _block_axis()},
        "y": {"field": "kind", "type": "ordinal", "scale": {"domain": kinds}, "title": None},
    }


def _block_axis() -> Spec:
    """Labels such as "3" for "block 3", as many as there is room for."""
    short = (
        "datum.label == 'embedders' ? 'in' : datum.label == 'final layer' ? 'out' : "
        "replace(replace(datum.label, 'unified block ', 'u'), 'block ', '')"
    )
    return {
        "title": "block",
        "labelAngle": 0,
        "labelOverlap": "greedy",
        "labelExpr": short,
    }


def _block(row: Row) -> str:
    return row.place.block


def _line(row: Row) -> str:
    return _line_of(row.place)


def _line_of(place: Any) -> str:
    """Return the line of a layer in a chart: its stream and role, or outside of blocks its short name."""
    if place.stream is None:
        return str(place.short)
    return str(place.role) if place.stream == "both" else f"{place.stream} {place.role}"


def _sorted_lines(places: Sequence[Any]) -> list[str]:
    """Return lines by stream, each in the order of the forward pass; what is in no block comes last."""
    streams = ("image", "text", "both", None)
    order = sorted(places, key=lambda place: streams.index(place.stream) if place.stream in streams else 2)
    return list(dict.fromkeys(map(_line_of, order)))
