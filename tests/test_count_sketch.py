"""A count sketch tells the norm of a sum that nobody held."""

import mlx.core as mx
import numpy as np
import pytest

from worker.engine import row_slices as row_slices_module
from worker.engine.count_sketch import CountSketch

SHAPES = [(1, 1), (5, 7), (33, 512), (40, 700), (300, 65)]


def draw(shape: tuple[int, int], seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_linear_and_the_same_each_time(shape: tuple[int, int]) -> None:
    one, two = draw(shape), draw(shape, 1)
    sketch, again = CountSketch(shape, 64, 3), CountSketch(shape, 64, 3)
    together = sketch.of(one + 2 * two)
    np.testing.assert_allclose(again.of(one) + 2 * again.of(two), together, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_number_lands_in_one_bucket_with_one_sign(shape: tuple[int, int]) -> None:
    """Numbers that are powers of a large base can be read off the buckets."""
    sketch, rng = CountSketch(shape, 64, 0), np.random.default_rng(0)
    for row, column in zip(rng.integers(0, shape[0], 5), rng.integers(0, shape[1], 5), strict=True):
        one = np.zeros(shape, np.float32)
        one[row, column] = 3
        found = sketch.of(mx.array(one))
        assert sorted(np.abs(found))[-2:] == [0, 3]


@pytest.mark.parametrize("kind", ["noise", "one channel", "rank one"])
def test_the_norm_is_unbiased_and_as_exact_as_it_says(kind: str) -> None:
    shape, buckets, seeds = (96, 160), 64, 200
    matrix = {
        "noise": draw(shape),
        "one channel": mx.zeros(shape).at[:, 5].add(1.0),
        "rank one": draw((96, 1)) * draw((1, 160), 1),
    }[kind]
    true = float(mx.square(matrix).sum())
    norms = np.array([np.square(CountSketch(shape, buckets, seed).of(matrix)).sum() for seed in range(seeds)])
    error = np.sqrt(2 / buckets)
    assert abs(norms.mean() / true - 1) < 4 * error / np.sqrt(seeds)
    assert norms.std() / true < 1.3 * error


def test_two_numbers_seldom_meet() -> None:
    """Neighbours in a row, in a column, and one bucket's width apart."""
    shape, buckets, seeds = (8, 192), 32, 300
    for other in ((0, 1), (1, 0), (0, 32), (1, 31), (3, 64), (7, 185)):
        pair = np.zeros(shape, np.float32)
        pair[0, 0], pair[other] = 1, 2
        sketches = [CountSketch(shape, buckets, seed).of(mx.array(pair)) for seed in range(seeds)]
        met = sum(np.count_nonzero(sketch) == 1 for sketch in sketches)
        assert met < seeds / buckets + 4 * np.sqrt(seeds / buckets)


@pytest.mark.parametrize("shape", [(33, 40), (100, 700)])
def test_slices_of_rows_change_nothing(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, whole = draw(shape), CountSketch(shape, 64, 0).of(draw(shape))
    monkeypatch.setattr(row_slices_module, "SLICE_WEIGHTS", 16 * (-(-shape[1] // 64) * 64))
    slices = list(row_slices_module.row_slices((shape[0], -(-shape[1] // 64) * 64)))
    assert [part.stop - part.start for part in slices[:2]] == [16, 16]
    assert slices[-1].stop == shape[0]
    np.testing.assert_allclose(CountSketch(shape, 64, 0).of(matrix), whole, atol=1e-4)
