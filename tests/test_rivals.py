"""What a plan is compared with: every rival fits the budget, and is made again just the same."""

import numpy as np
import pytest

from producer.plan.keep import parse_keep
from producer.plan.rivals import (
    KNAPSACK,
    RULE_OF_THUMB,
    THRESHOLD,
    relative_errors,
    rivals_of,
    uniform,
    uniform_that_fit,
)
from shared.plan import Choice, Variant
from tests.planned import TIED, card, offers_of, plan_of, weights_of

CARD = card()
WEIGHTS = weights_of(CARD)
OFFERS = offers_of(CARD)


def budget_of(label: str) -> int:
    bits, group_size = map(int, label.split("/"))
    return OFFERS.variant_bytes(uniform(OFFERS, Choice(bits=bits, group_size=group_size)).layers)  # type: ignore[arg-type]


def weight_error(variant: Variant) -> float:
    """Sum of relative squared errors, counted here anew."""
    column = {option: index for index, option in enumerate(OFFERS.options)}
    table = relative_errors(OFFERS, WEIGHTS)
    return float(
        sum(table[row, column[variant.layers.get(layer.path)]] for row, layer in enumerate(CARD.layers))
    )


@pytest.mark.parametrize("label", ["2/64", "3/64", "4/64", "4/32", "6/128"])
def test_rivals_fit_the_budget_and_nearly_fill_it(label: str) -> None:
    budget = budget_of(label)
    rivals = rivals_of(plan_of(CARD, budget_bytes=budget), CARD, WEIGHTS)
    for variant in rivals.variants():
        assert OFFERS.variant_bytes(variant.layers) <= budget, variant.name
    filled = {variant.name: OFFERS.variant_bytes(variant.layers) / budget for variant in rivals.others}
    assert all(part > 0.9 for part in filled.values()), filled
    assert label in {variant.name.removeprefix("uniform ") for variant in rivals.uniform}


def test_the_same_plan_has_the_same_rivals() -> None:
    plan = plan_of(CARD, budget_bytes=budget_of("4/64"))
    rivals = rivals_of(plan, CARD, WEIGHTS)
    assert rivals == rivals_of(plan, CARD, WEIGHTS)
    names = [variant.name for variant in rivals.variants()]
    assert len(set(names)) == len(names)
    assert {"uniform 4/64", RULE_OF_THUMB, KNAPSACK, THRESHOLD, "random 1", "random 5"} <= set(names)
    assert rivals.plain is not None
    assert rivals.plain.name == "uniform 4/64"
    randoms = [variant.layers for variant in rivals.others if variant.name.startswith("random")]
    assert all(one != other for i, one in enumerate(randoms) for other in randoms[:i])


def test_uniform_takes_smaller_groups_where_inputs_ask_for_it() -> None:
    layers = uniform(OFFERS, Choice(bits=4, group_size=128)).layers
    assert layers["block.0.q"] == Choice(bits=4, group_size=128)
    assert layers["block.1.narrow"] == Choice(bits=4, group_size=32)
    assert len(layers) == len(CARD.layers)


def test_of_each_group_size_the_widest_that_fits_is_a_rival() -> None:
    fitting = uniform_that_fit(OFFERS, budget_of("4/64"))
    assert [variant.name for variant in fitting.values()] == ["uniform 3/32", "uniform 4/64", "uniform 4/128"]
    assert uniform_that_fit(OFFERS, 1000) == {}


def test_the_rule_of_thumb_pays_for_its_final_layer() -> None:
    budget = budget_of("4/64")
    rivals = rivals_of(plan_of(CARD, budget_bytes=budget), CARD, WEIGHTS)
    thumb = next(variant for variant in rivals.others if variant.name == RULE_OF_THUMB)
    assert {choice.bits for path, choice in thumb.layers.items() if path.startswith("final")} == {8}
    assert {choice.bits for path, choice in thumb.layers.items() if not path.startswith("final")} <= {3, 4}
    assert OFFERS.variant_bytes(thumb.layers) > 0.95 * budget


def test_the_knapsack_has_the_smallest_weight_errors() -> None:
    rivals = rivals_of(plan_of(CARD, budget_bytes=budget_of("3/64")), CARD, WEIGHTS)
    errors = {variant.name: weight_error(variant) for variant in rivals.variants()}
    tied = [variant for variant in rivals.others if variant.name in (KNAPSACK, "random 1", THRESHOLD)]
    for variant in tied:
        assert len({variant.layers.get(path) for path in TIED}) == 1
    assert errors[KNAPSACK] <= min(errors.values()) * 1.001
    assert errors[THRESHOLD] < errors["random 1"]


def test_the_threshold_is_the_smallest_that_fits() -> None:
    budget = budget_of("4/64")
    rivals = rivals_of(plan_of(CARD, budget_bytes=budget), CARD, WEIGHTS)
    variant = next(variant for variant in rivals.others if variant.name == THRESHOLD)
    table = np.where(OFFERS.allowed, OFFERS.by_row(relative_errors(OFFERS, WEIGHTS)), np.inf)
    table /= OFFERS.by_row(np.ones(len(CARD.layers)))[:, None]

    def model(threshold: float) -> dict[str, Choice]:
        chosen = [
            min(
                (int(OFFERS.stored_bytes[row, option]), option)
                for option in np.flatnonzero(table[row] <= threshold)
            )[1]
            for row in range(len(table))
        ]
        return OFFERS.choices(np.array(chosen))

    fitting = [
        value
        for value in np.unique(table[np.isfinite(table)])
        if OFFERS.variant_bytes(model(value)) <= budget
    ]
    assert variant.layers == model(min(fitting))


def test_rivals_with_a_choice_keep_what_the_plan_had_to_keep() -> None:
    keep = ("block.0.adaLN=8", "context_embedder=keep", "block.1.q=4/64")
    assert [parse_keep(text).text for text in keep] == list(keep)
    rivals = rivals_of(plan_of(CARD, budget_bytes=budget_of("6/64"), keep=keep), CARD, WEIGHTS)
    for variant in rivals.others:
        if variant.name != RULE_OF_THUMB:
            assert "context_embedder" not in variant.layers
            assert variant.layers["block.1.q"] == Choice(bits=4, group_size=64)
            adaln = variant.layers.get("block.0.adaLN")
            assert adaln is None or adaln.bits == 8
