"""What a plan is compared with, at no more bytes: models that anybody could make without its measurements.

All follow from the plan and the weight errors alone, so that they can be made again anywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from producer.plan.keep import parse_keep
from producer.plan.offers import Offers, candidates_of, make_offers
from producer.plan.solver import Limit, solve
from shared.choices import DEFAULT_GROUP_SIZE, GROUP_SIZES
from shared.kinds.weights import WeightsShard
from shared.metrics import Floats, Integers
from shared.model_card import ModelCard
from shared.plan import Choice, Variant
from shared.plan_file import Plan

RULE_OF_THUMB = "rule of thumb"
KNAPSACK = "weight errors"
THRESHOLD = "weight threshold"
RANDOM = "random"
RANDOM_PLANS = 5
THUMB_BITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Rivals:
    """Variants that fit a plan's budget."""

    plain: Variant | None
    """One bit width in groups of 64, as MLX's tools make it; None if not even the smallest fits."""
    uniform: tuple[Variant, ...]
    """One bit width and group size, for each group size the widest that fits. The best is chosen on the
    choosing prompts."""
    others: tuple[Variant, ...]
    """The rule of thumb, the weight errors alone, the threshold, and random plans."""

    def variants(self) -> tuple[Variant, ...]:
        """Return all of them, none twice."""
        found = {variant.name: variant for variant in (*self.uniform, *self.others)}
        if self.plain is not None:
            found[self.plain.name] = self.plain
        return tuple(found.values())


def rivals_of(plan: Plan, card: ModelCard, weights: WeightsShard) -> Rivals:
    """Return what to compare a plan with: the same for the same plan and weight errors, anywhere.

    The uniform models and the rule of thumb know no --keep; the others choose from what the plan chose from.
    """
    offers = make_offers(card, weights, [parse_keep(text) for text in plan.keep], plan.candidates)
    free = make_offers(card, weights)
    budget = plan.budget_bytes
    fitting = uniform_that_fit(free, budget)
    plain = fitting.get(DEFAULT_GROUP_SIZE)
    thumb = rule_of_thumb(free, plain, budget) if plain else None
    others = [
        *([thumb] if thumb else []),
        by_weight_errors(offers, weights, budget),
        by_threshold(offers, weights, budget),
        *(random_plan(offers, budget, number) for number in range(1, RANDOM_PLANS + 1)),
    ]
    return Rivals(
        plain=plain,
        uniform=tuple(fitting.values()),
        others=tuple(others),
    )


def uniform(offers: Offers, choice: Choice) -> Variant:
    """Return a model with one choice for all layers.

    A layer whose inputs are no multiple of the group size takes the next smaller one, if it can; else it
    keeps its weight.
    """
    layers = {}
    for layer in offers.layers:
        sizes = [size for size in GROUP_SIZES if size <= choice.group_size and layer.shape[1] % size == 0]
        if sizes:
            layers[layer.path] = Choice(bits=choice.bits, group_size=max(sizes))  # type: ignore[arg-type]
    return Variant(name=f"uniform {choice.label}", layers=layers)


def uniform_that_fit(offers: Offers, budget: int) -> dict[int, Variant]:
    """Return, for each group size, the uniform model with most bits of those that fit the budget."""
    found: dict[int, Variant] = {}
    for choice in sorted(option for option in offers.options if option is not None):
        variant = uniform(offers, choice)
        if offers.variant_bytes(variant.layers) <= budget:
            found[choice.group_size] = variant
    return dict(sorted(found.items()))


def rule_of_thumb(offers: Offers, plain: Variant, budget: int) -> Variant | None:
    """Return `plain`, a uniform model, with the final layer at 8 bits.

    What that costs is saved elsewhere, layer by layer from the first: by groups of 128, and where all layers
    have those, by the next smaller bit width. None if that does not do.
    """
    final = _final_layers(offers)
    layers = dict(plain.layers)
    for path in final & layers.keys():
        choice = layers[path]
        layers[path] = Choice(bits=max(choice.bits, THUMB_BITS), group_size=choice.group_size)
    size = offers.variant_bytes(layers)
    widths = sorted({option.bits for option in offers.options if option is not None}, reverse=True)
    for bits in widths[widths.index(max(choice.bits for choice in plain.layers.values())) :]:
        smaller = uniform(offers, Choice(bits=bits, group_size=128)).layers
        for path in (path for path in smaller if path not in final):
            if size <= budget:
                break
            layers[path] = smaller[path]
            size = offers.variant_bytes(layers)
    return Variant(name=RULE_OF_THUMB, layers=layers) if size <= budget else None


def _final_layers(offers: Offers) -> set[str]:
    last = offers.layers[-1]
    if last.place is None:
        return {last.path}
    return {layer.path for layer in offers.layers if layer.place and layer.place.block == last.place.block}


def by_weight_errors(offers: Offers, weights: WeightsShard, budget: int) -> Variant:
    """Return the plan that is made of relative weight errors instead of scores, by the same solver."""
    error = offers.by_row(relative_errors(offers, weights))
    limit = Limit(size=offers.stored_bytes.astype(np.float64), most=budget - offers.other_bytes)
    return offers.variant(KNAPSACK, solve(error, offers.allowed, limit).chosen)


def by_threshold(offers: Offers, weights: WeightsShard, budget: int) -> Variant:
    """Return, for each layer, the smallest option whose relative weight error is below a threshold.

    The threshold is the smallest with which the model fits. This is how SDNQ chooses bits.
    """
    layers_per_row = offers.by_row(np.ones(len(offers.layers)))
    error = offers.by_row(relative_errors(offers, weights)) / layers_per_row[:, None]
    usable = np.where(offers.allowed, error, np.inf)
    sizes = np.where(offers.allowed, offers.stored_bytes, np.iinfo(np.int64).max)

    def within(threshold: float) -> Integers:
        fine = usable <= np.maximum(threshold, usable.min(axis=1, keepdims=True))
        smallest: Integers = np.where(fine, sizes, np.iinfo(np.int64).max).argmin(axis=1)
        return smallest

    thresholds = np.unique(usable[np.isfinite(usable)])
    first = _first(len(thresholds), lambda index: offers.total_bytes(within(thresholds[index])) <= budget)
    return offers.variant(THRESHOLD, within(thresholds[min(first, len(thresholds) - 1)]))


def random_plan(offers: Offers, budget: int, number: int) -> Variant:
    """Return a random model that nearly fills the budget.

    Each row takes a random option; then random rows take the next smaller one until the model fits, and
    random rows the next larger one while it still does.
    """
    rng = np.random.default_rng([number, budget])
    order = [np.flatnonzero(allowed) for allowed in offers.allowed]
    order = [
        row[np.argsort(size[row], kind="stable")]
        for row, size in zip(order, offers.stored_bytes, strict=True)
    ]
    place = np.array([rng.integers(len(row)) for row in order])

    def option(row: int, step: int) -> int:
        return int(order[row][place[row] + step])

    chosen = np.array([option(row, 0) for row in range(len(order))])
    size = offers.total_bytes(chosen)
    for step in (-1, 1):
        rows = list(range(len(order)))
        while rows and (step == 1 or size > budget):
            row = rows[int(rng.integers(len(rows)))]
            if not 0 <= place[row] + step < len(order[row]):
                rows.remove(row)
                continue
            change = int(
                offers.stored_bytes[row, option(row, step)] - offers.stored_bytes[row, option(row, 0)]
            )
            if step == 1 and size + change > budget:
                rows.remove(row)
                continue
            place[row] += step
            size += change
    chosen = np.array([option(row, 0) for row in range(len(order))])
    return offers.variant(f"{RANDOM} {number}", chosen)


def relative_errors(offers: Offers, weights: WeightsShard) -> Floats:
    """Return (L, K): ||W_quantized - W||^2 / ||W||^2 of each layer and option; 0 for its own weight."""
    known = candidates_of(weights)
    columns = [known.index(option) for option in offers.options if option is not None]
    norm = np.where(weights.squared_norm > 0, weights.squared_norm, 1.0)
    error: Floats = weights.squared_error[:, columns] / norm[:, None]
    return np.column_stack([error, np.zeros(len(norm))])


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """Return the first index at which `holds`, which from then on holds for all; `count` if it never does."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
