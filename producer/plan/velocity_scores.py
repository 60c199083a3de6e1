"""Scores from exact and sketched results: how much each option changes the velocity of single steps."""

from collections.abc import Sequence

import numpy as np

from producer.plan.scores import EVENLY, LayerScores, Thirds
from producer.results.results import Measurement, Results
from shared.errors import InputError
from shared.metrics import BUCKETS
from shared.model_card import ModelCard
from shared.plan import Choice


def velocity_scores(results: Results, card: ModelCard, *, thirds: Thirds = EVENLY) -> LayerScores:
    """Return the relative squared errors of all measured (layer, bits), at the results' group size.

    Raises:
        InputError: nothing was measured.
    """
    if not results.measurements:
        raise InputError(f"sensitivity {results.sensitivity_id} holds no measurement yet")
    size = results.sensitivity.group_size
    widths = sorted({pair.bits for pair in results.measurements})
    row = {layer.path: index for index, layer in enumerate(card.layers)}
    error, known = np.zeros((len(row), len(widths))), np.zeros((len(row), len(widths)), bool)
    for pair in results.measurements:
        value = 0.0 if pair.dead else _squared(pair, thirds)
        if value is not None and pair.layer in row:
            place = row[pair.layer], widths.index(pair.bits)
            error[place], known[place] = value, True
    return LayerScores(
        candidates=tuple(Choice(bits=bits, group_size=size) for bits in widths),  # type: ignore[arg-type]
        error=error,
        known=known,
        method="measured",
    )


def _squared(pair: Measurement, thirds: Sequence[float]) -> float | None:
    """Return the squared relative error, of all steps or of the weighted thirds; None if it is unknown."""
    if len(set(thirds)) == 1:
        error = pair.buckets["all"].relative_error
        return None if error is None else error**2
    total = 0.0
    for bucket, weight in zip(BUCKETS, thirds, strict=True):
        error = pair.buckets[bucket].relative_error if bucket in pair.buckets else None
        if weight and error is None:
            return None
        total += weight * (error or 0.0) ** 2
    return total / sum(thirds)
