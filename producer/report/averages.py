"""Average errors by role of the layer and by depth. Dead layers are left out.

The average is the root mean square of relative errors, because the squared errors of layers add up.
"""

import math
from collections import defaultdict
from collections.abc import Callable

from producer.results.results import Results
from shared.layer_place import LayerPlace

Averages = dict[str, dict[int, float]]
"""By label and bits, the average relative error. Labels are in the order of the layers."""


def by_kind(results: Results) -> Averages:
    """Return averages by role and stream, with labels such as "image q", "text fc1" or "embedders"."""
    return _averages(results, _role_label)


def by_depth(results: Results) -> Averages:
    """Return averages by block, without embedders and final layer."""
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
