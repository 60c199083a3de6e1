"""The metrics against their definitions, written out as loops, and the interval against a plain jackknife."""

import math

import numpy as np
import pytest

from shared.metrics import (
    BUCKETS,
    Floats,
    bucket_of,
    in_bucket,
    mean_squared_error,
    most_sensitive,
    relative_error,
    relative_error_interval,
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


def plain_jackknife(images: list[list[int]], errors: Floats, references: Floats) -> tuple[float, float]:
    """Leave out one image after the other, in decibels, in a loop; t from scipy's distribution."""
    from scipy import stats

    decibels = []
    for left_out in images:
        kept = [i for image in images if image is not left_out for i in image]
        decibels.append(10 * math.log10(references[kept].sum() / errors[kept].sum()))
    n = len(images)
    mean = sum(decibels) / n
    spread = math.sqrt((n - 1) / n * sum((value - mean) ** 2 for value in decibels))
    middle = 10 * math.log10(references.sum() / errors.sum())
    half = stats.t.ppf(0.975, n - 1) * spread
    return 10 ** (-(middle + half) / 20), 10 ** (-(middle - half) / 20)


def test_interval_agrees_with_a_plain_jackknife_in_decibels() -> None:
    rng = np.random.default_rng(2)
    image_index = rng.permutation(np.repeat([7, 3, 11, 5, 4], 6))
    errors, references = rng.exponential(size=(2, 30))
    groups = [list(np.flatnonzero(image_index == image)) for image in np.unique(image_index)]
    expected = plain_jackknife(groups, errors, references)
    assert relative_error_interval(errors, references, image_index) == pytest.approx(expected)


@pytest.mark.parametrize("images", [4, 8, 32])
@pytest.mark.parametrize(("scatter", "least"), [(0.3, 0.935), (0.6, 0.92), (1.0, 0.88)])
def test_interval_covers_the_truth_nearly_as_often_as_it_says(
    images: int, scatter: float, least: float
) -> None:
    """Images whose squared error is log-normal, as skewed as `scatter`, with three steps each."""
    rng = np.random.default_rng(3)
    trials, steps = 4000, 3
    references = rng.lognormal(0, 0.3, (trials, images)).repeat(steps, axis=1)
    shares = rng.lognormal(0, scatter, (trials, images)).repeat(steps, axis=1)
    errors = references * shares * rng.uniform(0.5, 1.5, references.shape)
    truth = math.exp(scatter**2 / 4)
    low, high = relative_error_interval(errors, references, np.arange(images).repeat(steps))
    covered = np.mean((low <= truth) & (truth <= high))
    assert least <= covered <= 0.965
    # Steps taken for independent would claim to know far more than they do.
    low, high = relative_error_interval(errors, references, np.arange(images * steps))
    assert np.mean((low <= truth) & (truth <= high)) < covered - 0.04


def test_candidates_are_done_at_once_and_alike() -> None:
    rng = np.random.default_rng(4)
    errors, references = rng.uniform(size=(2, 3, 5, 20))
    image_index = np.repeat(np.arange(5), 4)
    low, high = relative_error_interval(errors, references, image_index)
    assert low.shape == high.shape == (3, 5)
    for i in range(3):
        for j in range(5):
            one = relative_error_interval(errors[i, j], references[i, j], image_index)
            assert (low[i, j], high[i, j]) == one


@pytest.mark.parametrize(("images", "made"), [(1, False), (3, False), (4, True)])
def test_fewer_than_four_images_have_no_interval(images: int, made: bool) -> None:
    errors = np.linspace(1, 2, images * 9)
    low, high = relative_error_interval(errors, np.ones_like(errors), np.arange(images).repeat(9))
    assert np.isfinite([low, high]).all() == made


def test_no_error_at_all_is_certain_and_a_lone_error_is_not() -> None:
    ones, images = np.ones(5), np.arange(5)
    assert relative_error_interval(np.zeros(5), ones, images) == (0, 0)
    assert np.isnan(relative_error_interval(np.eye(5)[0], ones, images)).all()
    assert np.isnan(relative_error_interval(ones, np.zeros(5), images)).all()


def test_most_sensitive_leaves_out_what_has_no_score() -> None:
    scores = [("a", 0.1), ("b", None), ("c", 0.5), ("d", float("nan")), ("e", 0.1), ("f", 0.0)]
    assert most_sensitive(scores, 3) == ["c", "a", "e"]
    assert most_sensitive(scores, 10) == ["c", "a", "e", "f"]
