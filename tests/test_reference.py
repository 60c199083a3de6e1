"""Arithmetic of the engines that needs no model."""

import numpy as np
import pytest

from shared.errors import RunMismatchError
from shared.layout.sample_set import SampleSet
from worker.engine.metrics import compare, is_tight
from worker.engine.reference import check_reference

RNG = np.random.default_rng(0)


def sample_set(v, dsigma, dtype):
    """Euler steps along velocities v (n, H, W, C) from latents of size one, stored as `dtype`."""
    n = len(v)
    x = RNG.normal(size=v.shape).astype(np.float32)
    sigma = np.full(n, 0.5, np.float32)
    return SampleSet(
        x=x.astype(dtype),
        timestep=1000 * sigma,
        sigma=sigma,
        x_next=(x - dsigma * v).astype(dtype),
        sigma_next=(sigma - dsigma).astype(np.float32),
        has_next=np.ones(n, bool),
        step_index=np.arange(n, dtype=np.int32),
        image=np.zeros(n, np.int32),
        image_index=np.zeros(1, np.int32),
        conditioning={"text": np.zeros((1, 2, 1, 1), np.float32)},
    )


def velocities(n=3):
    return RNG.normal(size=(n, 8, 8, 16)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("dsigma", [0.3, 0.02, 0.001])
def test_rounding_of_stored_latents_is_never_taken_for_another_model(dtype, dsigma):
    v = velocities()
    check_reference(sample_set(v, dsigma, dtype), np.arange(3), v, half_precision=dtype == np.float16)


@pytest.mark.parametrize(("dtype", "off"), [(np.float32, 0.05), (np.float16, 0.3)])
def test_a_velocity_that_is_off_is_named(dtype, off):
    v = velocities()
    wrong = v.copy()
    wrong[1] += off * RNG.normal(size=v[1].shape)
    with pytest.raises(RunMismatchError, match=r"image 0 step 1: its velocity is off by \d+\.\d%"):
        check_reference(sample_set(v, 0.1, dtype), np.arange(3), wrong, half_precision=dtype == np.float16)


def test_a_last_step_has_nothing_to_be_held_against():
    v = velocities(1)
    samples = sample_set(v, 0.1, np.float32)
    object.__setattr__(samples, "has_next", np.zeros(1, bool))
    check_reference(samples, np.arange(1), v + 1, half_precision=False)


def test_a_velocity_that_is_not_a_number_is_refused():
    v = velocities(1)
    with pytest.raises(RunMismatchError):
        check_reference(sample_set(v, 0.1, np.float32), np.arange(1), v * np.nan, half_precision=False)


def test_metrics_of_known_differences():
    v_ref = np.zeros((3, 1, 1, 2))
    v_ref[:2, 0, 0] = [3, 4]
    v = v_ref.copy()
    v[1, 0, 0] = [-4, 3]
    metrics = compare(v, v_ref)
    assert metrics["squared_error"].tolist() == [0, 50, 0]
    assert metrics["squared_reference"].tolist() == [25, 25, 0]
    assert metrics["cosine"].tolist() == [1, 0, 1]
    assert metrics["max_abs"].tolist() == [0, 7, 0]


def test_the_interval_is_that_of_repeated_draws():
    """Of many draws of 30 images, 95% lie within the interval that just counts as tight."""
    covered = 0
    for _ in range(400):
        reference = RNG.uniform(50, 150, 30)
        error = 0.01 * reference * RNG.uniform(0.5, 1.5, 30)
        image = np.arange(30)
        percents = np.linspace(0.5, 20, 400)
        tight = next(p for p in percents if is_tight(error, reference, image, p))
        covered += abs(np.sqrt(error.sum() / reference.sum()) / 0.1 - 1) <= tight / 100
    assert 0.9 < covered / 400 < 0.99


def test_what_says_nothing_is_not_tight():
    ones = np.ones(3)
    assert not is_tight(ones, ones, np.array([0, 1, 2]), 50)
    assert not is_tight(np.zeros(8), np.ones(8), np.arange(8), 50)
    assert is_tight(np.ones(8), np.ones(8), np.arange(8), 1)
    # Steps of one image count as one: two images are too few, whatever the steps.
    assert not is_tight(np.ones(80), np.ones(80), np.repeat([0, 1], 40), 1)
