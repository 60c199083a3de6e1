"""A worker whose model answers otherwise than the first worker's is refused and named."""

import contextlib
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from redis import Redis

from benchmarks.random_mmdit import as_family, flux_config, random_pipeline, sd3_config
from shared.errors import RunMismatchError
from tests.tasks import SETTINGS
from worker.engine.layers import get_weight, set_weight
from worker.families.diffusionkit.layers import linear_layers
from worker.service.canary import measure_canary
from worker.service.canary_votes import (
    MAX_VALUES,
    MAX_VOTES,
    TOLERANCES,
    Canary,
    compare_with_others,
    note_work,
)

KEY = f"bitfleet:canary:{SETTINGS.id}"


def model(config: Any = sd3_config) -> Any:
    return as_family(random_pipeline(config()))


@pytest.fixture(autouse=True)
def workers(redis: Redis) -> None:
    """The workers of these tests are there."""
    for host in ("studio", "air", "odd", "broken"):
        redis.hset(f"rq:worker:{host}-1", "state", "busy")


def canary(host: str, output: Any, fingerprint: str = "f" * 64) -> Canary:
    return Canary(
        fingerprint=fingerprint,
        host=host,
        worker=f"{host.partition(chr(27))[0]}-1",
        versions={"mlx": "0.32.4", "platform": "Darwin arm64"},
        output=[float(value) for value in output],
    )


@pytest.mark.parametrize(("config", "cfg_weight"), [(sd3_config, 7.5), (sd3_config, 0.0), (flux_config, 0.0)])
def test_equal_models_agree(redis: Redis, config: Any, cfg_weight: float) -> None:
    run = msgspec.structs.replace(SETTINGS, cfg_weight=cfg_weight)
    outputs = [measure_canary(model(config), run) for _ in range(2)]
    assert outputs[0].dtype == np.float32
    assert 0 < outputs[0].size <= MAX_VALUES
    assert np.linalg.norm(outputs[0]) > 0
    assert compare_with_others(redis, run, canary("studio", outputs[0])) == 0
    assert compare_with_others(redis, run, canary("air", outputs[1])) == 0


def test_measuring_leaves_the_model_as_it_was() -> None:
    one = model()
    first = measure_canary(one, SETTINGS)
    assert np.array_equal(measure_canary(one, SETTINGS), first)
    for module in one.transformer.modules():
        assert not getattr(module, "_modulation_params", {})


def test_any_changed_layer_is_noticed(redis: Redis) -> None:
    """But for the queries of so little text, which hardly show in the velocity, the last not at all."""
    changed = model()
    mmdit = changed.transformer
    reference = measure_canary(changed, SETTINGS)
    compare_with_others(redis, SETTINGS, canary("studio", reference))
    unnoticed = []
    for layer in linear_layers(mmdit):
        weight = get_weight(mmdit, layer.path)
        set_weight(mmdit, layer.path, 2 * weight)
        try:
            compare_with_others(redis, SETTINGS, canary("air", measure_canary(changed, SETTINGS)))
            unnoticed.append(layer.path)
        except RunMismatchError as error:
            assert "air" not in str(error)
            assert "than studio (mlx 0.32.4, platform Darwin arm64)" in str(error)
        set_weight(mmdit, layer.path, weight)
    assert all(layer.endswith("text_transformer_block.attn.q_proj") for layer in unnoticed)


@pytest.mark.parametrize(("config", "dtype"), [(sd3_config, mx.float16), (flux_config, mx.bfloat16)])
def test_half_precision_differs_by_less_than_is_tolerated_of_it(config: Any, dtype: Any) -> None:
    whole, half = model(config), model(config)
    half.transformer.apply(lambda array: array.astype(dtype))
    half._pipeline.activation_dtype = dtype
    outputs = [measure_canary(one, SETTINGS) for one in (whole, half)]
    difference = np.linalg.norm(outputs[1] - outputs[0]) / np.linalg.norm(outputs[0])
    assert 0 < difference < TOLERANCES["float16"]


def test_other_files_are_refused(redis: Redis) -> None:
    compare_with_others(redis, SETTINGS, canary("studio", [1, 2]))
    with pytest.raises(RunMismatchError, match="are not those of studio"):
        compare_with_others(redis, SETTINGS, canary("air", [1, 2], fingerprint="e" * 64))


@pytest.mark.parametrize("output", [[1.0, 2.01], [1.0]])
def test_beyond_the_tolerance(redis: Redis, output: list[float]) -> None:
    compare_with_others(redis, SETTINGS, canary("studio", [1.0, 2.0]))
    with pytest.raises(RunMismatchError, match="computes otherwise than studio"):
        compare_with_others(redis, SETTINGS, canary("air", output))


@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
def test_what_is_not_finite_is_called_so_and_held_against_nobody(redis: Redis, lost: float) -> None:
    with pytest.raises(RunMismatchError, match=r"not finite on this machine \(mlx 0.32.4.*1 of 2 values"):
        compare_with_others(redis, SETTINGS, canary("broken", [lost, 2.0]))
    # It is not the first, then.
    assert compare_with_others(redis, SETTINGS, canary("studio", [1.0, 2.0])) == 0
    with pytest.raises(RunMismatchError, match="not finite"):
        compare_with_others(redis, SETTINGS, canary("broken", [lost, 2.0]))


def test_tolerance(redis: Redis) -> None:
    compare_with_others(redis, SETTINGS, canary("studio", [3.0, 4.0]))
    # (0, 0.05) against (3, 4), which is 5 long.
    other = canary("air", [3.0, 4.05])
    assert compare_with_others(redis, SETTINGS, other, tolerance=0.011) == pytest.approx(0.01)
    with pytest.raises(RunMismatchError, match=r"relative difference 0\.01, tolerance 0\.009"):
        compare_with_others(redis, SETTINGS, other, tolerance=0.009)


def test_runs_do_not_meddle(redis: Redis) -> None:
    compare_with_others(redis, SETTINGS, canary("studio", [1.0]))
    assert compare_with_others(redis, msgspec.structs.replace(SETTINGS, seed=1), canary("air", [2.0])) == 0


GARBAGE = [b"", b"\xff", b'{"output": []}', b'{"x":' + b"[" * 5000]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_no_canary(redis: Redis, garbage: bytes) -> None:
    redis.hset(KEY, "x", garbage)
    assert compare_with_others(redis, SETTINGS, canary("studio", [1.0])) == 0
    with pytest.raises(RunMismatchError):
        compare_with_others(redis, SETTINGS, canary("air", [2.0]))


def test_one_answer_does_not_outvote_machines_that_agree(redis: Redis) -> None:
    """It was there first, and its worker lives: one machine leaves over it, and comes back."""
    compare_with_others(redis, SETTINGS, canary("odd", [9.0]))
    with pytest.raises(RunMismatchError, match="otherwise than odd"):
        compare_with_others(redis, SETTINGS, canary("studio", [1.0]))
    assert compare_with_others(redis, SETTINGS, canary("air", [1.0])) == 0
    assert compare_with_others(redis, SETTINGS, canary("studio", [1.0])) == 0
    with pytest.raises(RunMismatchError, match="otherwise than air, studio"):
        compare_with_others(redis, SETTINGS, canary("odd", [9.0]))


def test_many_processes_of_one_machine_are_one_voice(redis: Redis) -> None:
    for _ in range(3):
        compare_with_others(redis, SETTINGS, canary("odd", [9.0]))
    for host in ("studio", "air"):
        with contextlib.suppress(RunMismatchError):
            compare_with_others(redis, SETTINGS, canary(host, [1.0]))
    assert compare_with_others(redis, SETTINGS, canary("studio", [1.0])) == 0


def test_an_answer_without_a_worker_or_work_does_not_count(redis: Redis) -> None:
    """It is old, or somebody wrote it: the one machine that is there is not stopped by it."""
    odd = canary("odd", [9.0])
    compare_with_others(redis, SETTINGS, odd)
    redis.delete(f"rq:worker:{odd.worker}")
    assert compare_with_others(redis, SETTINGS, canary("studio", [1.0])) == 0


def test_a_machine_that_has_worked_and_left_still_counts(redis: Redis) -> None:
    first = canary("studio", [1.0])
    compare_with_others(redis, SETTINGS, first)
    note_work(redis, SETTINGS, first)
    redis.delete(f"rq:worker:{first.worker}")
    with pytest.raises(RunMismatchError, match="otherwise than studio"):
        compare_with_others(redis, SETTINGS, canary("air", [2.0]))


def test_too_many_answers_are_thrown_away(redis: Redis) -> None:
    redis.hset(KEY, mapping={str(number): b"x" for number in range(MAX_VOTES + 1)})
    assert compare_with_others(redis, SETTINGS, canary("studio", [1.0])) == 0
    assert redis.hlen(KEY) == 1


def test_nothing_of_an_answer_is_obeyed_by_a_terminal(redis: Redis) -> None:
    escapes = "\x1b]0;x\x07\x1b[2J"
    compare_with_others(redis, SETTINGS, canary(f"odd{escapes}", [9.0]))
    with pytest.raises(RunMismatchError) as caught:
        compare_with_others(redis, SETTINGS, canary("studio", [1.0]))
    assert str(caught.value).isprintable()
