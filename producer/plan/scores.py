"""Scores: how much each option of each layer moves the image, from the levels of several images.

The score of an option is level x ||dW||^2, the squared error of the final latent that this change alone is
expected to cause, relative to the latent's squared norm. With G the gradient of <r, x_N> by a layer's weight,
r a random vector of +-1:

    sketch     level = mean(G^2), the expectation for a dW without direction
    products   level = <G, dW>^2 / ||dW||^2, averaged over a few plain candidates: real errors of rounding

One image's probe says little about its own size, so each image's levels are divided by their sum before they
are averaged, and the largest and smallest are left out: no single image decides.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from producer.plan.offers import candidates_of
from shared.errors import RunMismatchError
from shared.kinds.levels import LevelsShard
from shared.kinds.weights import WeightsShard
from shared.metrics import Booleans, Floats
from shared.model_card import ModelCard
from shared.plan import Choice

ENOUGH_IMAGES = 8
"""From so many images on, products with plain candidates give better levels than the sketch."""
TRIM = 0.1
"""Part of the images left out at each end; from three images on one at least."""
ALL_STEPS = 3
"""Index of all steps among the parts of a shard."""

Method = Literal["products", "sketch"]
Thirds = tuple[float, float, float]
EVENLY: Thirds = (1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScores:
    """Scores of L layers with C candidates."""

    candidates: tuple[Choice, ...]
    error: Floats
    """(L, C): squared error relative to the output."""
    known: Booleans
    """(L, C): False where there is no score."""
    method: Literal["products", "sketch", "measured"]


def scores_of(
    shards: Sequence[LevelsShard],
    plain: Sequence[Choice],
    weights: WeightsShard,
    *,
    thirds: Thirds = EVENLY,
    method: Method | None = None,
) -> LayerScores:
    """Return the scores of all candidates of `weights`. A layer that no gradient reaches has scores of 0.

    Args:
        shards: one an image.
        plain: the candidates of the shards' products.
        weights: squared errors of the weights.
        thirds: weights of errors made early, in the middle and late. If they are equal, errors add up over
            all steps with their signs; else within each third only.
        method: how levels are taken; None takes products, if there are any, from eight images on.

    Raises:
        RunMismatchError: there is no shard, or it is of other layers than the weights.
    """
    if not shards or any(len(shard.levels) != len(weights.squared_norm) for shard in shards):
        raise RunMismatchError("no levels, or levels of other layers than the weight errors")
    if method is None:
        method = "products" if len(shards) >= ENOUGH_IMAGES and plain else "sketch"
    by_image = np.stack([_levels(shard, plain, weights, thirds, method) for shard in shards])
    reference = np.array([float(shard.squared_reference) for shard in shards])
    unit = _unit(weights)
    scale = by_image @ unit
    alive = scale > 0
    level = np.zeros(len(unit))
    if alive.any():
        level = trimmed_mean(by_image[alive] / scale[alive, None])
        # The trim takes more of skewed values; together they are what a middling image says.
        level *= np.median(scale[alive] / reference[alive]) / max(float(level @ unit), 1e-300)
    return LayerScores(
        candidates=tuple(candidates_of(weights)),
        error=level[:, None] * weights.squared_error,
        known=weights.measurable,
        method=method,
    )


def scores_csv(scores: LayerScores, card: ModelCard) -> str:
    """Return a CSV with a line for each layer: the root of each candidate's score, a relative error.

    A candidate that a layer can't be is an empty cell. A dead layer's are all 0.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("layer", "outputs", "inputs", *(choice.label for choice in scores.candidates)))
    for layer, errors, known in zip(card.layers, np.sqrt(scores.error), scores.known, strict=True):
        cells = (f"{error:.4g}" if there else "" for error, there in zip(errors, known, strict=True))
        writer.writerow((layer.path, *layer.shape, *cells))
    return buffer.getvalue()


def trimmed_mean(values: Floats) -> Floats:
    """Return the mean over the first axis, without the smallest and largest values of each column."""
    count = len(values)
    cut = max(1, int(TRIM * count)) if count >= 3 else 0
    mean: Floats = np.sort(values, axis=0)[cut : count - cut].mean(axis=0)
    return mean


def _levels(
    shard: LevelsShard, plain: Sequence[Choice], weights: WeightsShard, thirds: Thirds, method: Method
) -> Floats:
    """Return (L,) levels of one image."""
    by_part = _by_products(shard, plain, weights) if method == "products" else shard.levels
    if len(set(thirds)) == 1:
        return by_part[:, ALL_STEPS]
    share: Floats = by_part[:, :ALL_STEPS] @ np.array(thirds) / (sum(thirds) / len(thirds))
    return share


def _by_products(shard: LevelsShard, plain: Sequence[Choice], weights: WeightsShard) -> Floats:
    """Return (L, parts): <G, dW>^2 / ||dW||^2, averaged; the sketched level where no product was measured."""
    known = candidates_of(weights)
    columns = [known.index(choice) for choice in plain if choice in known]
    taken = [index for index, choice in enumerate(plain) if choice in known]
    norm = weights.squared_error[:, columns]
    usable = shard.measurable[:, taken] & (norm > 0)
    ratio = shard.products[:, taken] ** 2 / np.where(usable, norm, 1.0)[:, :, None]
    count = usable.sum(axis=1)
    mean = (ratio * usable[:, :, None]).sum(axis=1) / np.maximum(count, 1)[:, None]
    level: Floats = np.where(count[:, None] > 0, mean, shard.levels)
    return level


def _unit(weights: WeightsShard) -> Floats:
    """Return (L,): the mean squared error of each layer's candidates, to add levels up with."""
    count = np.maximum(weights.measurable.sum(axis=1), 1)
    unit: Floats = np.where(weights.measurable, weights.squared_error, 0.0).sum(axis=1) / count
    return unit
