"""Averages over layers: by role, and by depth. Dead layers don't count.

The average is the root mean square of the relative errors: squared errors of many layers add up.
"""

import math
from collections import defaultdict
from collections.abc import Callable

from producer.results.results import Results
from shared.layer_place import LayerPlace

Averages = dict[str, dict[int, float]]
"""Label -> bits -> root mean square relative error, labels in the order of the layers."""


def by_kind(results: Results) -> Averages:
    """By role and stream: "image q", "text fc1", "embedders", ..."""
    return _averages(results, _role_label)


def by_depth(results: Results) -> Averages:
    """By block; embedders and final layer are none."""
    return _averages(results, lambda place: place.block if place.stream else None)


def _role_label(place: LayerPlace) -> str:
    if place.stream is None:
        return place.block
    return place.role if place.stream == "both" else f"{place.stream} {place.role}"


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
