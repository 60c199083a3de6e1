"""Shards and sample sets: whole and consistent, or refused."""

from typing import Any

import numpy as np
import pytest

from shared.errors import ShardCorruptError
from shared.kinds.calibration import CalibrationShard
from shared.kinds.sensitivity import SensitivityShard
from shared.layout import npz
from shared.layout.npz import Array
from shared.layout.sample_set import SampleSet


def calibration_arrays() -> dict[str, Array]:
    return {
        "x": np.zeros((3, 2, 2, 4), dtype=np.float16),
        "sigma": np.array([1, 0.5, 0], dtype=np.float32),
        "timestep": np.array([1000, 500], dtype=np.float32),
        "conditioning": np.zeros((2, 5, 3), dtype=np.float16),
        "pooled_conditioning": np.zeros((2, 7), dtype=np.float16),
        "preview_png": np.frombuffer(b"\x89PNG", dtype=np.uint8),
        "model_json": np.frombuffer(b"{}", dtype=np.uint8),
    }


def sensitivity_arrays() -> dict[str, Array]:
    per_sample = ("squared_error", "squared_reference", "noise_squared_error", "cosine", "max_abs")
    scalars = ("weight_squared_error", "weight_squared_norm", "bits_per_weight")
    return {
        "image_index": np.array([0, 0, 1]),
        "step_index": np.array([0, 1, 0]),
        **{name: np.ones(3) for name in per_sample},
        "output_size": np.array(64),
        "dead": np.array(False),
        **{name: np.array(1.5) for name in scalars},
    }


def sample_arrays() -> dict[str, Array]:
    return {
        "x": np.ones((3, 2, 2, 4), dtype=np.float16),
        "timestep": np.array([1000, 500, 1000], dtype=np.float32),
        "sigma": np.array([1, 0.5, 1], dtype=np.float32),
        "x_next": np.zeros((3, 2, 2, 4), dtype=np.float16),
        "sigma_next": np.array([0.5, 0, 0.5], dtype=np.float32),
        "has_next": np.array([True, False, True]),
        "step_index": np.array([0, 1, 0], dtype=np.int32),
        "image": np.array([0, 0, 1], dtype=np.int32),
        "image_index": np.array([0, 4], dtype=np.int32),
        "conditioning": np.zeros((2, 2, 5, 3), dtype=np.float16),
        "pooled_conditioning": np.zeros((2, 2, 7), dtype=np.float16),
    }


KINDS = [
    (CalibrationShard, calibration_arrays),
    (SensitivityShard, sensitivity_arrays),
    (SampleSet, sample_arrays),
]


@pytest.mark.parametrize(("kind", "arrays"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
class TestEveryKind:
    def test_round_trip(self, kind: Any, arrays: Any) -> None:
        data = kind.from_bytes(npz.pack(arrays())).to_bytes()
        assert data == npz.pack(arrays())
        for name, array in npz.unpack(data).items():
            np.testing.assert_array_equal(array, arrays()[name], strict=True)

    def test_every_array_is_needed(self, kind: Any, arrays: Any) -> None:
        for name in arrays():
            rest = {other: array for other, array in arrays().items() if other != name}
            with pytest.raises(ShardCorruptError, match=name):
                kind.from_bytes(npz.pack(rest))

    def test_what_it_does_not_know_is_left_out(self, kind: Any, arrays: Any) -> None:
        back = kind.from_bytes(npz.pack(arrays() | {"later": np.zeros(1)}))
        assert back.to_bytes() == npz.pack(arrays())

    @pytest.mark.parametrize("wrong", [np.zeros((1,) * 6), np.array("text"), np.array(["a"])])
    def test_an_array_of_another_kind_or_rank(self, kind: Any, arrays: Any, wrong: Array) -> None:
        for name in arrays():
            with pytest.raises(ShardCorruptError):
                kind.from_bytes(npz.pack(arrays() | {name: wrong}))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("x", np.zeros((2, 2, 2, 4)), "2 latents"),
        ("sigma", np.zeros(2), "2 sigmas"),
        ("timestep", np.zeros(0), "0 steps"),
        ("conditioning", np.zeros((1, 5, 3)), "differ in rows"),
        ("pooled_conditioning", np.zeros((2, 7, 1)), "3 axes"),
        ("pooled_conditioning", np.zeros((2, 7), dtype=np.int64), "int64"),
        ("x", np.full((3, 2, 2, 4), np.nan), "NaN"),
        ("x", np.full((3, 2, 2, 4), np.inf), "NaN"),
        ("preview_png", np.zeros(4, dtype=np.int8), "preview_png"),
    ],
)
def test_calibration_shards_that_do_not_fit(name: str, array: Array, message: str) -> None:
    with pytest.raises(ShardCorruptError, match=message):
        CalibrationShard.from_bytes(npz.pack(calibration_arrays() | {name: array}))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("cosine", np.ones(2), "lengths"),
        ("cosine", np.array([1, np.nan, 1]), "NaN"),
        ("squared_error", np.array([1, np.inf, 1]), "NaN"),
        ("weight_squared_norm", np.array(np.nan), "NaN"),
        ("dead", np.array(1), "dead"),
        ("step_index", np.ones(3), "step_index"),
    ],
)
def test_sensitivity_shards_that_do_not_fit(name: str, array: Array, message: str) -> None:
    with pytest.raises(ShardCorruptError, match=message):
        SensitivityShard.from_bytes(npz.pack(sensitivity_arrays() | {name: array}))


def test_a_sensitivity_shard_of_no_samples() -> None:
    arrays = {name: array[:0] if array.ndim else array for name, array in sensitivity_arrays().items()}
    with pytest.raises(ShardCorruptError, match="lengths"):
        SensitivityShard.from_bytes(npz.pack(arrays))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("sigma", np.zeros(2, dtype=np.float32)),
        ("x", np.zeros((0, 2, 2, 4))),
        ("x_next", np.zeros((3, 2, 2, 5))),
        ("x", np.zeros((3, 2))),
        ("image", np.array([0, 0, 2], dtype=np.int32)),
        ("image", np.array([0, -1, 1], dtype=np.int32)),
        ("image", np.array([0.0, 0.5, 1.0])),
        ("has_next", np.array([1, 0, 1])),
        ("step_index", np.array([0.5, 0, 0])),
        ("conditioning", np.zeros((3, 2, 5, 3))),
        ("conditioning", np.zeros((2, 5, 3))),
        ("pooled_conditioning", np.zeros((1, 2, 7))),
        ("pooled_conditioning", np.zeros((2, 1, 7))),
        ("x", np.full((3, 2, 2, 4), np.nan)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sample_sets_that_do_not_fit(name: str, array: Array) -> None:
    with pytest.raises(ShardCorruptError):
        SampleSet.from_bytes(npz.pack(sample_arrays() | {name: array}))


def test_implied_velocity_is_that_of_an_euler_step() -> None:
    rng = np.random.default_rng(0)
    velocity = rng.normal(size=(3, 2, 2, 4)).astype(np.float32)
    arrays = sample_arrays() | {"x": rng.normal(size=(3, 2, 2, 4)).astype(np.float32)}
    step = (arrays["sigma_next"] - arrays["sigma"])[:, None, None, None]
    samples = SampleSet.from_bytes(npz.pack(arrays | {"x_next": arrays["x"] + step * velocity}))
    np.testing.assert_allclose(samples.implied_velocity, velocity, rtol=1e-5, atol=1e-5)
    still = SampleSet.from_bytes(npz.pack(arrays | {"sigma_next": arrays["sigma"]}))
    assert not still.implied_velocity.any()


def test_a_shard_is_no_sample_set() -> None:
    with pytest.raises(ShardCorruptError, match="is missing"):
        SampleSet.from_bytes(npz.pack(calibration_arrays()))


OWN = {"text": np.ones((2, 5, 3), np.float16), "mask": np.ones((2, 5), bool), "labels": np.array([3, 4])}


def own_names() -> dict[str, Array]:
    """A calibration shard of a family with names of its own."""
    rest = {name: array for name, array in calibration_arrays().items() if "conditioning" not in name}
    return rest | {f"conditioning.{name}": array for name, array in OWN.items()}


def test_a_family_has_names_of_its_own() -> None:
    shard = CalibrationShard.from_bytes(npz.pack(own_names()))
    assert list(shard.conditioning) == ["text", "mask", "labels"]
    for name, array in OWN.items():
        np.testing.assert_array_equal(shard.conditioning[name], array, strict=True)
    assert npz.unpack(shard.to_bytes()).keys() == own_names().keys()
    both = CalibrationShard.from_bytes(npz.pack(calibration_arrays() | own_names()))
    assert list(both.conditioning) == ["conditioning", "pooled_conditioning", "text", "mask", "labels"]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("text", np.ones((1, 5, 3)), "differ in rows: text"),
        ("text", np.full((2, 5), np.nan), "'text' holds NaN"),
        ("text", np.array(["a", "b"]), "'text' is <U1"),
        ("text", np.array(1.0), "differ in rows"),
        ("not a name", np.ones(2), "unexpected member"),
        ("two.dots", np.ones(2), "unexpected member"),
    ],
)
def test_a_familys_own_arrays_are_checked(name: str, array: Array, message: str) -> None:
    with pytest.raises(ShardCorruptError, match=message):
        CalibrationShard.from_bytes(npz.pack(own_names() | {f"conditioning.{name}": array}))
