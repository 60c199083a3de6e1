"""An inspection as a table, and as JSON."""

import json
from collections import Counter
from typing import Any

import msgspec
from humanfriendly import format_size

from producer.inspection.inspect_checkpoint import Inspection
from producer.inspection.layers import Layer
from producer.lines import out


def print_inspection(inspection: Inspection) -> None:
    """Print every layer, then totals by how layers are stored, then what is wrong."""
    rows = [("layer", "weight", "stored as", "bits a weight", "bytes")]
    rows += [_row(layer) for layer in inspection.layers]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        out.show("  ".join((first.ljust(widths[0]), *cells)))
    out.show()
    for line in _totals(inspection):
        out.show(line)
    for problem in inspection.all_problems:
        out.show(f"wrong: {problem}")


def _row(layer: Layer) -> tuple[str, str, str, str, str]:
    return (
        f"{layer.part}/{layer.path}" if layer.part else layer.path,
        " x ".join(map(str, layer.shape)),
        layer.stored_as + ("" if layer.certain else " ?"),
        f"{layer.bits_per_weight:.2f}",
        f"{layer.nbytes:,}",
    )


def inspection_json(inspection: Inspection) -> str:
    """Return all of it as JSON, derived numbers included."""
    value: dict[str, Any] = msgspec.to_builtins(inspection)
    value["layers"] = [
        msgspec.to_builtins(layer)
        | {"stored_as": layer.stored_as, "bits_per_weight": round(layer.bits_per_weight, 6)}
        for layer in inspection.layers
    ]
    value["other_bytes"] = inspection.other_bytes
    value["problems"] = list(inspection.all_problems)
    return json.dumps(value, indent=2)


def _totals(inspection: Inspection) -> list[str]:
    layers, quantized = inspection.layers, inspection.quantized
    counts, sizes = Counter[str](), Counter[str]()
    for layer in layers:
        counts[layer.stored_as] += 1
        sizes[layer.stored_as] += layer.nbytes
    lines = [f"{name}: {counts[name]} layers, {format_size(size)}" for name, size in sizes.most_common()]
    others = inspection.tensors - _tensors_of(layers)
    lines.append(f"other tensors: {others}, {format_size(inspection.other_bytes)}")
    weights = sum(layer.weights for layer in layers)
    bits = 8 * sum(layer.nbytes for layer in layers) / max(1, weights)
    lines.append(
        f"{len(quantized)} of {len(layers)} layers are quantized; {bits:.3f} bits a weight over all "
        f"{weights:,} weights; {format_size(inspection.nbytes)} in {inspection.tensors} tensors"
    )
    if not all(layer.certain for layer in layers):
        lines.append("?: the shapes allow another reading, and nothing tells them apart")
    if quantized:
        lines.append(_agreement(quantized))
    return lines


def _agreement(quantized: tuple[Layer, ...]) -> str:
    labelled = [layer for layer in quantized if layer.label]
    if not labelled:
        return "the files do not say how they are quantized"
    wrong = sum(layer.problem is not None for layer in labelled)
    return f"label and content differ in {wrong} layers" if wrong else "the label is what the files hold"


def _tensors_of(layers: tuple[Layer, ...]) -> int:
    """A packed weight comes with scales, and in affine mode with biases."""
    return sum(1 if layer.group_size is None else 3 if layer.mode == "affine" else 2 for layer in layers)
