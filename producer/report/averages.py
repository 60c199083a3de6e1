"""Averages over layers: by kind, and by depth. Dead layers don't count.

The average is the root mean square of the relative errors: squared errors of many layers add up.
"""

import math
from collections import defaultdict
from collections.abc import Callable

from producer.results.layer_place import LayerPlace
from producer.results.results import Results

Averages = dict[str, dict[int, float]]
"""Label -> bits -> root mean square relative error, labels in the order of the layers."""


def by_kind(results: Results) -> Averages:
    """By kind and stream: "image q", "text fc1", "embedders", ..."""
    return _averages(results, _kind_label)


def by_depth(results: Results) -> Averages:
    """By block; embedders and final layer are none."""
    return _averages(results, lambda place: place.group if place.stream else None)


def _kind_label(place: LayerPlace) -> str:
    if place.stream is None:
        return place.group
    return place.kind if place.stream == "both" else f"{place.stream} {place.kind}"


def _averages(results: Results, label_of: Callable[[LayerPlace], str | None]) -> Averages:
    places = {layer.path: layer.place for layer in results.layers}
    squares: dict[str, dict[int, list[float]]] = {}
    for pair in results.measurements:
        label, error = label_of(places[pair.layer]), pair.buckets["all"].relative_error
        if label is not None and error is not None and not pair.dead:
            squares.setdefault(label, defaultdict(list))[pair.bits].append(error**2)
    return {
        label: {bits: math.sqrt(sum(values) / len(values)) for bits, values in of_label.items()}
        for label, of_label in squares.items()
    }
