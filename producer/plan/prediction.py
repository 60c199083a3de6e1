"""Predicted errors of a few variants, on images that had no part in choosing them.

To first order a variant's squared error of the final latent is, in expectation over the probe, the square of
its summed products; one probe's square is off by 140%. So an image's error is put together of three averages:

    single   the sum over layers of the squared products: the layers' single errors, averaged over images
    joint    how much larger the squared sum is than that; with few images mostly of all variants together,
             with many the variant's own
    scale    of the image: its squared products relative to each layer's mean, averaged over layers, since an
             image that is moved easily is moved by every layer

The joint form predicts. It must never be optimised: with as few probes as there are, a choice made by it
predicts a hundredth of its own error.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from shared.kinds.confirm import ConfirmShard
from shared.metrics import Floats, Integers

RESAMPLES = 2000
LEVEL = 0.95
TOGETHER_IMAGES = 90
"""The factor of all variants together counts like so many images: factors differ by 15% from one variant to
another, and one image's says the true one to 140%."""
ANOTHER_PICTURE = 4.0
"""An image whose measured error is over so many times the predicted one has become another picture."""


class Interval(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value with its 95% interval over images, by bootstrap."""

    value: float
    low: float
    high: float


class Prediction(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The predicted error of one variant, relative to the final latent."""

    name: str
    images: int
    median_db: Interval
    """Median over images of the signal to quantization noise ratio."""
    mean_db: Interval
    median_squared_error: float
    """Median over images of the relative squared error."""
    joint: float
    """How many times the sum of single errors the error of all layers together is."""
    squared_error: tuple[float, ...]
    """Relative squared error of each image, in the order of the images."""
    image_index: tuple[int, ...]


def predict(shards: Sequence[ConfirmShard], names: Sequence[str]) -> list[Prediction]:
    """Return the prediction of each variant, in the order of the shards' rows."""
    ordered = sorted(shards, key=lambda shard: int(shard.image_index))
    images = tuple(int(shard.image_index) for shard in ordered)
    reference = np.array([float(shard.squared_reference) for shard in ordered])
    # (V, n, L)
    squares = np.stack([shard.products**2 for shard in ordered], axis=1) / reference[:, None]
    joint = np.stack([shard.products.sum(axis=1) ** 2 for shard in ordered], axis=1) / reference
    single = squares.sum(axis=-1)
    # (V, n): by how much the joint error of an image is larger than its single errors.
    ratio = np.divide(joint, single, out=np.ones_like(joint), where=single > 0)
    changed = ratio[single.sum(axis=1) > 0]
    together = changed.mean(axis=0) if len(changed) else np.ones(len(ordered))
    draws = np.random.default_rng(0).integers(len(ordered), size=(RESAMPLES, len(ordered)))
    return [
        _prediction(name, squares[row], ratio[row], together, draws, images) for row, name in enumerate(names)
    ]


def _prediction(
    name: str, squares: Floats, ratio: Floats, together: Floats, draws: Integers, images: tuple[int, ...]
) -> Prediction:
    single, scale = squares.sum(axis=-1), _scales(squares)
    factor = _factor(ratio, together)
    error = factor * single.mean() * scale
    drawn = scale[draws] / np.maximum(scale[draws].mean(axis=1, keepdims=True), 1e-300)
    level = _factor(ratio[draws], together[draws]) * single[draws].mean(axis=1)
    resampled = level[:, None] * drawn
    return Prediction(
        name=name,
        images=len(images),
        median_db=_interval(_db(np.median(error)), _db(np.median(resampled, axis=1))),
        mean_db=_interval(_db(error).mean(), _db(resampled).mean(axis=1)),
        median_squared_error=float(np.median(error)),
        joint=float(factor),
        squared_error=tuple(error.tolist()),
        image_index=images,
    )


def _scales(squares: Floats) -> Floats:
    """Return (n,) scales of images, 1 on average, from (n, L) squared products."""
    mean = squares.mean(axis=0)
    if not mean.any():
        return np.ones(len(squares))
    scale: Floats = (squares[:, mean > 0] / mean[mean > 0]).mean(axis=1)
    return scale


def _factor(ratio: Floats, together: Floats) -> Floats:
    """Return the mean over images (..., n) of a variant's ratio, drawn to that of all variants together."""
    own = ratio.shape[-1] / (ratio.shape[-1] + TOGETHER_IMAGES)
    factor: Floats = own * ratio.mean(axis=-1) + (1 - own) * together.mean(axis=-1)
    return factor


def _db(error: Any) -> Floats:
    """Return the decibels of relative squared errors, numbers or arrays; 200 for none."""
    decibel: Floats = -10 * np.log10(np.maximum(error, 1e-20))
    return decibel


def _interval(value: Floats, resampled: Floats) -> Interval:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=float(value), low=float(low), high=float(high))


def another_picture(predicted: Prediction, measured: Floats) -> float:
    """Return the share of images, (n,) relative squared errors, that are over four times the prediction.

    They need not be the images of the prediction: its median is what counts.
    """
    return float(np.mean(np.asarray(measured) > ANOTHER_PICTURE * predicted.median_squared_error))


_decoder = msgspec.json.Decoder(list[Prediction])


def read_predictions(path: Path) -> list[Prediction]:
    """Return predictions that were written; none if the file is missing."""
    return _decoder.decode(path.read_bytes()) if path.is_file() else []
