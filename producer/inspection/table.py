"""An inspection as a table, and as JSON."""

import json
from collections import Counter
from typing import Any

import msgspec
from humanfriendly import format_size
from rich.table import Table

from producer.console import out
from producer.inspection.inspect_checkpoint import Inspection
from producer.inspection.layers import Layer


def print_inspection(inspection: Inspection) -> None:
    """Print every layer, then totals by how layers are stored, then what is wrong."""
    table = Table("layer", "weight", "stored as", "bits a weight", "bytes", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for layer in inspection.layers:
        table.add_row(
            f"{layer.part}/{layer.path}" if layer.part else layer.path,
            " x ".join(map(str, layer.shape)),
            layer.stored_as + ("" if layer.certain else " ?"),
            f"{layer.bits_per_weight:.2f}",
            f"{layer.nbytes:,}",
        )
    out.print(table)
    for line in _totals(inspection):
        out.print(line, markup=False)
    for problem in inspection.all_problems:
        out.print(f"wrong: {problem}", markup=False)


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
    lines = [
        f"{stored_as}: {counts[stored_as]} layers, {format_size(size)}"
        for stored_as, size in sizes.most_common()
    ]
    lines.append(
        f"other tensors: {inspection.tensors - _tensors_of(layers)}, {format_size(inspection.other_bytes)}"
    )
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
