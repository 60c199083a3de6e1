"""Scores: what images say of each option, averaged so that no single image decides."""

import numpy as np
import pytest

from producer.plan.scores import LayerScores, scores_csv, scores_of, trimmed_mean
from producer.plan.velocity_scores import velocity_scores
from producer.results.merge import merge_results
from shared.errors import RunMismatchError
from shared.kinds.levels import LevelsShard
from shared.metrics import Floats
from shared.plan import Choice
from tests.conftest import DEAD, Example
from tests.planned import CANDIDATES, PLAIN, card, levels_of, true_levels, weights_of

CARD = card()
WEIGHTS = weights_of(CARD)
NARROWEST = CANDIDATES.index(Choice(bits=3, group_size=32))
"""A candidate that all layers have."""
TRUE = true_levels(CARD)[:, None] * WEIGHTS.squared_error / 100.0


def shards(count: int, **options: object) -> list[LevelsShard]:
    return [levels_of(CARD, image, **options) for image in range(count)]  # type: ignore[arg-type]


def off(scores: LayerScores, truth: Floats = TRUE) -> Floats:
    """By how much the scores of each layer are off, as logarithms to base 2."""
    return np.log2(scores.error[:, NARROWEST] / truth[:, NARROWEST])


def test_one_image_gives_scores_by_the_sketch() -> None:
    scores = scores_of(shards(1), PLAIN, WEIGHTS)
    assert scores.method == "sketch"
    assert scores.candidates == CANDIDATES
    assert np.abs(off(scores)).max() < 0.2
    assert scores.error.sum() == pytest.approx(TRUE.sum(), rel=0.15)
    assert (scores.error[~WEIGHTS.measurable] == 0).all()
    assert (scores.known == WEIGHTS.measurable).all()


def test_products_give_scores_from_eight_images_on() -> None:
    assert scores_of(shards(7), PLAIN, WEIGHTS).method == "sketch"
    assert scores_of(shards(8), (), WEIGHTS).method == "sketch"
    scores = scores_of(shards(60), PLAIN, WEIGHTS)
    assert scores.method == "products"
    # Each product's square scatters by 140%; 180 of them for each layer, some left out at the ends.
    assert np.abs(off(scores)).max() < 0.7


def test_a_layer_without_a_plain_candidate_takes_its_sketched_level() -> None:
    narrow = [layer.path for layer in CARD.layers].index("block.1.narrow")
    assert not WEIGHTS.measurable[narrow, CANDIDATES.index(PLAIN[0])]
    scores = scores_of(shards(40), PLAIN, WEIGHTS)
    column = CANDIDATES.index(Choice(bits=4, group_size=32))
    assert scores.error[narrow, column] == pytest.approx(TRUE[narrow, column], rel=0.5)


@pytest.mark.parametrize("method", ["sketch", "products"])
def test_no_single_image_decides(method: str) -> None:
    calm = shards(12)
    before = scores_of(calm, PLAIN, WEIGHTS, method=method)  # type: ignore[arg-type]
    # An image that blows up everything, and one of which a single layer is all.
    wild = [*calm[:-2], levels_of(CARD, 10, factor=1e6), levels_of(CARD, 11)]
    wild[-1].levels[3] *= 1e6
    wild[-1].products[3] *= 1e3
    after = scores_of(wild, PLAIN, WEIGHTS, method=method)  # type: ignore[arg-type]
    assert np.abs(np.log2(after.error[:, NARROWEST] / before.error[:, NARROWEST])).max() < 0.5


def test_a_layer_that_no_gradient_reaches_scores_nothing() -> None:
    scores = scores_of(shards(8, dead=("block.0.q",)), PLAIN, WEIGHTS)
    assert (scores.error[1] == 0).all()
    assert (scores.error[[0, 2, 3]][:, 0] > 0).all()


def test_thirds_can_be_weighed() -> None:
    one = levels_of(CARD, 0)
    one.levels[:, 0] *= 50
    even = scores_of([one], PLAIN, WEIGHTS)
    early = scores_of([one], PLAIN, WEIGHTS, thirds=(1.0, 0.0, 0.0))
    late = scores_of([one], PLAIN, WEIGHTS, thirds=(0.0, 0.0, 1.0))
    assert even.error.sum() == pytest.approx(scores_of(shards(1), PLAIN, WEIGHTS).error.sum())
    assert early.error.sum() == pytest.approx(50 * late.error.sum(), rel=0.1)


def test_a_table_says_what_each_choice_costs() -> None:
    lines = scores_csv(scores_of(shards(8), PLAIN, WEIGHTS), CARD).splitlines()
    assert lines[0].startswith("layer,outputs,inputs,2/32,2/64,2/128,3/32")
    assert len(lines) == 1 + len(CARD.layers)
    narrow = next(line for line in lines if line.startswith("block.1.narrow,256,96")).split(",")
    assert narrow[4] == narrow[5] == ""
    assert 0 < float(narrow[6]) < float(narrow[3])


def test_levels_of_another_model_are_refused() -> None:
    with pytest.raises(RunMismatchError):
        scores_of([], PLAIN, WEIGHTS)


def test_the_trim_leaves_out_the_ends() -> None:
    assert trimmed_mean(np.array([[1.0], [3.0]])) == [2.0]
    assert trimmed_mean(np.array([[1.0], [2.0], [1e9]])) == [2.0]
    assert trimmed_mean(np.arange(20.0)[:, None] ** 3) == np.mean(np.arange(2.0, 18.0) ** 3)


def test_velocity_scores_are_the_measured_errors_at_one_group_size() -> None:
    example = Example()
    results = merge_results(
        example.finished(), run=example.run, sensitivity=example.sensitivity, card=example.card, missing=[]
    )
    scores = velocity_scores(results, example.card)
    assert scores.candidates == tuple(Choice(bits=bits, group_size=64) for bits in (2, 4, 8))
    row = [layer.path for layer in example.card.layers].index("final_layer.linear")
    pair = next(p for p in results.measurements if p.layer == "final_layer.linear" and p.bits == 4)
    assert scores.error[row, 1] == pair.buckets["all"].relative_error ** 2  # type: ignore[operator]
    dead = [layer.path for layer in example.card.layers].index(DEAD)
    assert scores.known.all()
    assert (scores.error[dead] == 0).all()
    late = velocity_scores(results, example.card, thirds=(0.0, 0.0, 1.0))
    assert late.error[row, 1] == pair.buckets["late"].relative_error ** 2  # type: ignore[operator]
