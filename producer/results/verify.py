"""Choose the sketched (layer, bits) whose uncertainty could most change a plan, to measure them exactly."""

import math

import numpy as np

from producer.results.sketch import Estimates
from shared.metrics import Floats
from shared.model_card import ModelCard

TARGETS = 9
"""Number of average bit widths, evenly between the smallest and the largest, for which a plan is made."""


def pairs_to_verify(estimates: Estimates, card: ModelCard, count: int) -> list[tuple[str, int]]:
    """Return the `count` (layer, bits) whose uncertainty matters most for a plan, in falling order.

    For a given price per bit, a plan takes for each layer the bit width with the smallest squared error plus
    price times size. With the two best widths of a layer known exactly, the expected gain is that of a normal
    difference: s (phi(z) - z (1 - Phi(z))), where z = gap / s. It is summed over several prices, and shared
    between the two widths by their variances. Dead and unmeasurable layers are left out.
    """
    error = estimates.squared_error.sum(axis=-1)
    variance = estimates.variance.sum(axis=-1)
    sizes = np.array([layer.shape[0] * layer.shape[1] for layer in card.layers], np.float64)
    cost = sizes[:, None] * estimates.example.bits_per_weight
    open_layers = np.flatnonzero(estimates.example.measurable & ~estimates.dead)
    score = np.zeros_like(error)
    if error.shape[1] > 1:
        for price in _prices(error, cost, open_layers):
            for layer in open_layers:
                best, second = np.argsort(error[layer] + price * cost[layer], kind="stable")[:2]
                gap = (error[layer] + price * cost[layer])[[best, second]]
                spread = variance[layer, best] + variance[layer, second]
                gain = _expected_gain(float(gap[1] - gap[0]), math.sqrt(spread))
                for width in (best, second):
                    score[layer, width] += gain * variance[layer, width] / max(spread, 1e-300)
    else:
        score[open_layers] = np.sqrt(variance[open_layers])
    order = np.argsort(-score, axis=None, kind="stable")[:count]
    chosen = [divmod(int(index), error.shape[1]) for index in order]
    return [
        (card.layers[layer].path, estimates.bits[width]) for layer, width in chosen if score[layer, width]
    ]


def _prices(error: Floats, cost: Floats, layers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[float]:
    """Return the prices per bit at which the plan reaches each of the target sizes."""
    error, cost = error[layers], cost[layers]
    low, high = cost.min(axis=1).sum(), cost.max(axis=1).sum()
    return [_price(error, cost, low + (high - low) * (i + 1) / (TARGETS + 1)) for i in range(TARGETS)]


def _price(error: Floats, cost: Floats, target: float) -> float:
    """Find a price by bisection of its logarithm: a higher price never gives more bits."""
    cheap, dear = -200.0, 100.0
    for _ in range(60):
        middle = (cheap + dear) / 2
        chosen = np.argmin(error + math.exp(middle) * cost, axis=1)
        bought = np.take_along_axis(cost, chosen[:, None], axis=1).sum()
        cheap, dear = (middle, dear) if bought > target else (cheap, middle)
    return math.exp(dear)


def _expected_gain(gap: float, spread: float) -> float:
    if spread == 0:
        return 0.0
    z = gap / spread
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return spread * (density - z * 0.5 * math.erfc(z / math.sqrt(2)))
