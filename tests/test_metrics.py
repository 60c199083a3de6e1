"""The metrics against their definitions, written out as loops, and the interval against a plain bootstrap."""

import math

import numpy as np
import pytest

from producer.results.metrics import (
    BUCKETS,
    Floats,
    bucket_of,
    in_bucket,
    mean_squared_error,
    most_sensitive,
    relative_error,
    relative_error_interval,
    resampling,
    sqnr_db,
)


def test_buckets_are_thirds() -> None:
    assert [bucket_of(step, 6) for step in range(6)] == ["early"] * 2 + ["mid"] * 2 + ["late"] * 2
    assert [bucket_of(step, 4) for step in range(4)] == ["early", "early", "mid", "late"]
    assert [bucket_of(step, 2) for step in range(2)] == ["early", "mid"]
    assert bucket_of(0, 1) == "early"
    for num_steps in range(3, 60):
        sizes = [sum(bucket_of(s, num_steps) == b for s in range(num_steps)) for b in BUCKETS]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == num_steps


@pytest.mark.parametrize("step", [-1, 6, 100])
def test_a_step_outside_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"no step {step} in 6"):
        bucket_of(step, 6)


def test_in_bucket() -> None:
    steps = np.array([5, 0, 3, 1])
    assert in_bucket(steps, 6, "late").tolist() == [True, False, False, False]
    assert in_bucket(steps, 6, "early").tolist() == [False, True, False, True]


def test_metrics_equal_their_definitions_on_whole_outputs() -> None:
    rng = np.random.default_rng(1)
    v = rng.normal(size=(7, 4, 5))
    v_q = v + 0.1 * rng.normal(size=v.shape)
    squared_error = ((v_q - v) ** 2).sum(axis=(1, 2))
    squared_reference = (v**2).sum(axis=(1, 2))
    noise = np.linalg.norm(v_q - v)
    signal = np.linalg.norm(v)
    assert mean_squared_error(squared_error, 20) == pytest.approx(np.mean((v_q - v) ** 2))
    total = (squared_error.sum(), squared_reference.sum())
    assert relative_error(*total) == pytest.approx(noise / signal)
    assert sqnr_db(*total) == pytest.approx(20 * math.log10(signal / noise))
    assert sqnr_db(*total) == pytest.approx(-20 * math.log10(relative_error(*total)))


def test_zero_error_and_zero_reference() -> None:
    errors, references = np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0])
    np.testing.assert_array_equal(relative_error(errors, references), [0, np.nan, np.inf])
    np.testing.assert_array_equal(sqnr_db(errors, references), [np.inf, np.nan, -np.inf])


def plain_bootstrap(groups: list[list[int]], errors: Floats, references: Floats) -> tuple[float, float]:
    """Draw groups with replacement, sum, divide: in a loop, with a generator of its own."""
    rng = np.random.default_rng(99)
    ratios = []
    for _ in range(4000):
        chosen = [i for g in rng.integers(len(groups), size=len(groups)) for i in groups[g]]
        ratios.append(math.sqrt(errors[chosen].sum() / references[chosen].sum()))
    return float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))


@pytest.mark.parametrize("unit", ["image", "sample"])
def test_interval_agrees_with_a_plain_bootstrap(unit: str) -> None:
    rng = np.random.default_rng(2)
    images, steps = (12, 4) if unit == "image" else (1, 30)
    image_index = np.repeat(np.arange(images), steps)
    # Images differ much, steps little: the unit of drawing decides the width.
    errors = np.exp(rng.normal(size=images))[image_index] * rng.uniform(0.5, 1.5, images * steps)
    references = rng.uniform(5, 10, images * steps)
    draws = resampling(image_index, resamples=4000)
    assert draws is not None
    assert draws.unit == unit
    low, high = relative_error_interval(errors, references, draws)
    groups = [list(np.flatnonzero(image_index == i)) for i in range(images)]
    expected = plain_bootstrap(groups if unit == "image" else [[i] for i in range(steps)], errors, references)
    assert (low, high) == pytest.approx(expected, rel=0.02)
    other = plain_bootstrap([[i] for i in range(images * steps)], errors, references)
    if unit == "image":
        assert high - low > 1.3 * (other[1] - other[0])


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    trials, n = 400, 60
    errors = rng.exponential(size=(trials, n))
    draws = resampling(np.zeros(n, int))
    assert draws is not None
    low, high = relative_error_interval(errors, np.ones_like(errors), draws)
    covered = np.mean((low <= 1) & (high >= 1))
    assert 0.88 <= covered <= 0.98


def test_candidates_are_done_at_once_and_alike() -> None:
    rng = np.random.default_rng(4)
    errors, references = rng.uniform(size=(2, 3, 5, 20))
    draws = resampling(np.repeat(np.arange(5), 4))
    assert draws is not None
    low, high = relative_error_interval(errors, references, draws)
    assert low.shape == high.shape == (3, 5)
    for i in range(3):
        for j in range(5):
            one = relative_error_interval(errors[i, j], references[i, j], draws)
            assert (low[i, j], high[i, j]) == pytest.approx(one)


def test_equal_seeds_draw_alike_and_others_differ() -> None:
    images = np.arange(6)
    first, second, third = (resampling(images, seed=seed) for seed in (5, 5, 6))
    assert first is not None
    assert second is not None
    assert third is not None
    np.testing.assert_array_equal(first.weights, second.weights)
    assert (first.weights != third.weights).any()
    assert (first.weights.sum(axis=1) == 6).all()


def test_one_sample_has_no_interval() -> None:
    assert resampling(np.array([3])) is None


def test_most_sensitive_leaves_out_what_has_no_score() -> None:
    scores = [("a", 0.1), ("b", None), ("c", 0.5), ("d", float("nan")), ("e", 0.1), ("f", 0.0)]
    assert most_sensitive(scores, 3) == ["c", "a", "e"]
    assert most_sensitive(scores, 10) == ["c", "a", "e", "f"]
