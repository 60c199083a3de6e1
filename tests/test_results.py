"""Merging against plain loops over the shards; the files against their own reading."""

import csv
import io
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from producer.results.merge import FinishedTask, merge_results
from producer.results.results import MissingTask, Results, decode_results, encode_results, results_csv
from shared.errors import InputError, RunMismatchError
from shared.kinds.calibration import CalibrationTask
from shared.layer_place import place_by_number
from shared.metrics import bucket_of

Make = Callable[..., Any]


def merge(example: Any, finished: list[FinishedTask] | None = None, **options: Any) -> Results:
    return merge_results(
        example.finished() if finished is None else finished,
        run=example.run,
        sensitivity=example.sensitivity,
        card=example.card,
        **options,
    )


def test_metrics_equal_plain_loops_over_the_shard(make_example: Make) -> None:
    example = make_example()
    finished = example.finished()
    results = merge(example, finished)
    shards = {(pair.task.layer, pair.task.bits): pair.shard for pair in finished}
    assert len(results.measurements) == len(shards) == 34 * 3
    for pair in results.measurements:
        shard = shards[pair.layer, pair.bits]
        assert pair.bits_per_weight == pair.bits + 0.5
        assert pair.weight_relative_error == pytest.approx(math.sqrt(4.0 ** (1 - pair.bits) / 2))
        assert list(pair.buckets) == ["all", "early", "mid", "late"]
        for bucket, metrics in pair.buckets.items():
            chosen = [
                i for i, step in enumerate(shard.step_index) if bucket in ("all", bucket_of(int(step), 6))
            ]
            error = sum(float(shard.squared_error[i]) for i in chosen)
            reference = sum(float(shard.squared_reference[i]) for i in chosen)
            assert metrics.samples == len(chosen) == (24 if bucket == "all" else 8)
            assert metrics.mse == pytest.approx(error / len(chosen) / 1024)
            assert metrics.relative_error == pytest.approx(math.sqrt(error / reference))
            assert metrics.cosine == pytest.approx(np.mean([shard.cosine[i] for i in chosen]))
            assert metrics.max_abs == max(shard.max_abs[i] for i in chosen)
            noise = math.sqrt(len(chosen) * 1e-12 / reference)
            assert metrics.noise_relative_error == pytest.approx(noise)
            if pair.dead:
                assert metrics.sqnr_db is None
                continue
            assert metrics.sqnr_db == pytest.approx(10 * math.log10(reference / error))
            low, high = metrics.relative_error_low, metrics.relative_error_high
            assert low is not None
            assert high is not None
            assert low < metrics.relative_error < high
    assert results.noise_floor["all"].maximum == max(
        pair.buckets["all"].noise_relative_error or 0 for pair in results.measurements
    )


def with_noise(pair: FinishedTask, times: float) -> FinishedTask:
    """Its errors are `times` the noise floor, as relative errors."""
    noise = pair.shard.squared_error / times**2 if times else np.zeros_like(pair.shard.squared_error)
    return replace(pair, shard=replace(pair.shard, noise_squared_error=noise))


@pytest.mark.parametrize(("times", "within"), [(1.9, True), (2.1, False), (0, False)])
def test_what_lies_within_twice_the_floor_is_marked(make_example: Make, times: float, within: bool) -> None:
    example = make_example()
    finished = [with_noise(pair, times) for pair in example.finished()]
    results = merge(example, finished)
    live = [pair for pair in results.measurements if not pair.dead]
    assert {metrics.within_noise for pair in live for metrics in pair.buckets.values()} == {within}
    rows = list(csv.DictReader(io.StringIO(results_csv(results))))
    assert {row["within_noise"] for row in rows if row["dead"] == "0"} == {str(int(within))}
    assert decode_results(encode_results(results)) == results
    # A floor of 0 was not measured, and is no floor.
    assert bool(results.noise_floor) == (times > 0)


def test_dead_layers_are_told_apart_and_hold_zeros(make_example: Make) -> None:
    results = merge(make_example())
    dead = [pair for pair in results.measurements if pair.dead]
    assert {pair.layer for pair in dead} == {
        "multimodal_transformer_blocks.1.text_transformer_block.attn.q_proj"
    }
    for pair in dead:
        assert pair.buckets["all"].relative_error == 0
        assert pair.buckets["all"].sqnr_db is None


def test_what_is_missing_is_said_in_the_order_of_layers(make_example: Make) -> None:
    example = make_example()
    last, first = example.card.layers[-1].path, example.card.layers[0].path
    missing = [
        MissingTask(layer=last, bits=4, reason="queued"),
        MissingTask(layer=first, bits=8, reason="failed on air: out of memory"),
        MissingTask(layer=first, bits=3, reason="queued"),
    ]
    gone = {(task.layer, task.bits) for task in missing}
    finished = [pair for pair in example.finished() if (pair.task.layer, pair.task.bits) not in gone]
    results = merge(example, finished, missing=missing)
    assert not results.complete
    assert [(task.layer, task.bits) for task in results.missing] == [(first, 3), (first, 8), (last, 4)]
    assert results.missing[1].reason == "failed on air: out of memory"
    assert results.bits == (2, 3, 4, 8)
    assert merge(example).complete


def test_nothing_finished_yet(make_example: Make) -> None:
    example = make_example()
    missing = [MissingTask(layer="context_embedder", bits=2, reason="queued")]
    results = merge(example, [], missing=missing)
    assert (results.measurements, results.samples, results.hosts, results.noise_floor) == ((), 0, (), {})
    assert decode_results(encode_results(results)) == results
    assert results_csv(results).count("\n") == 1


def test_same_input_in_any_order_gives_the_same_bytes(make_example: Make) -> None:
    example = make_example()
    first = merge(example)
    shuffled = example.finished()
    random.Random(1).shuffle(shuffled)
    second = merge(example, shuffled)
    assert encode_results(first) == encode_results(second)
    assert results_csv(first) == results_csv(second)


def test_shards_on_other_samples_are_measured_on_their_own(make_example: Make) -> None:
    """A candidate that was stopped early holds fewer samples than its neighbours."""
    example, short = make_example(), make_example(images=1)
    finished = example.finished()
    task = finished[5].task
    finished[5] = FinishedTask(task=task, shard=short.shard(task), record=finished[5].record)
    results = merge(example, finished)
    alone = merge(example, [finished[5]])
    assert results.measurements[5].buckets["all"].samples == 6
    assert results.measurements[5].buckets == alone.measurements[0].buckets
    lows = [pair.buckets["all"].relative_error_low for pair in results.measurements]
    assert [index for index, low in enumerate(lows) if low is None] == [5], "one image has no interval"


def test_one_sample_has_no_interval_and_no_late_bucket(make_example: Make) -> None:
    example = make_example(images=1, num_steps=1)
    results = merge(example)
    buckets = results.measurements[0].buckets
    assert list(buckets) == ["all", "early"]
    assert buckets["all"].relative_error_low is None
    assert results.bucket_steps == {"early": (0, 1), "mid": (1, 1), "late": (1, 1)}


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7, 28, 50])
def test_bucket_steps_agree_with_bucket_of(make_example: Make, num_steps: int) -> None:
    results = merge(make_example(num_steps=num_steps), [])
    for bucket, (first, end) in results.bucket_steps.items():
        assert [s for s in range(num_steps) if bucket_of(s, num_steps) == bucket] == list(range(first, end))


def test_hosts(make_example: Make) -> None:
    example = make_example()
    task = CalibrationTask(run=example.run, store_id="store", image_index=0, prompt="a", seed=0)
    calibration = [example.record(task, "mini", number) for number in (3, 10)]
    results = merge(example, calibration_records=calibration)
    assert [(host.kind, host.host, host.tasks) for host in results.hosts] == [
        ("calibration", "mini", 2),
        ("sensitivity", "air", 51),
        ("sensitivity", "studio", 51),
    ]
    mini, _, studio = results.hosts
    assert (mini.seconds_total, mini.seconds_median) == pytest.approx((0.2 + 13 / 7, 0.1 + 6.5 / 7))
    assert (mini.first_finished_at, mini.last_finished_at) == ("2026-01-02T03:00:03Z", "2026-01-02T03:00:10Z")
    assert (mini.workers, studio.workers) == (2, 1)
    assert studio.seconds_total == pytest.approx(sum(0.1 + n / 7 for n in range(0, 102, 2)))


def test_what_belongs_to_another_run_is_refused(make_example: Make) -> None:
    example, other = make_example(), make_example(num_steps=5)
    with pytest.raises(RunMismatchError, match="context_embedder at 2 bits was measured for another run"):
        merge(example, other.finished())
    finished, second = example.finished()[:2]
    with pytest.raises(RunMismatchError, match="was given twice"):
        merge(example, [finished, finished])
    with pytest.raises(RunMismatchError, match="no layer nonsense"):
        merge(example, missing=[MissingTask(layer="nonsense", bits=2, reason="queued")])
    record = msgspec.structs.replace(finished.record, fingerprint="0" * 64)
    with pytest.raises(RunMismatchError, match="another model: 000000000000"):
        merge(example, [FinishedTask(task=finished.task, shard=finished.shard, record=record)])
    with pytest.raises(RunMismatchError, match="measured for another run"):
        merge(example, [FinishedTask(task=finished.task, shard=finished.shard, record=second.record)])
    longer = make_example(num_steps=7).shard(finished.task)
    with pytest.raises(RunMismatchError, match="a run of 6 steps"):
        merge(example, [FinishedTask(task=finished.task, shard=longer, record=finished.record)])


def test_json_is_strict_and_reads_back(make_example: Make) -> None:
    results = merge(make_example(), missing=[])
    data = encode_results(results)
    assert decode_results(data) == results

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    plain = json.loads(data, parse_constant=refuse)
    assert plain["run"]["num_steps"] == 6
    assert plain["complete"] is True
    assert plain["layers"][0]["parameters"] == 64 * 64
    for bad in (b"{}", b"\xff", data.replace(b'"format": 2', b'"format": 1')):
        with pytest.raises(InputError, match="results"):
            decode_results(bad)


def test_csv_has_a_row_for_each_layer_bits_and_bucket(make_example: Make) -> None:
    results = merge(make_example())
    rows = list(csv.DictReader(io.StringIO(results_csv(results))))
    assert len(rows) == 34 * 3 * 4
    wanted = next(pair for pair in results.measurements if pair.bits == 4)
    row = next(
        row for row in rows if (row["layer"], row["bits"], row["bucket"]) == ("context_embedder", "4", "late")
    )
    assert float(row["relative_error"]) == wanted.buckets["late"].relative_error
    assert (row["role"], row["block"], row["outputs"], row["dead"]) == ("embedder", "embedders", "64", "0")
    dead = [row for row in rows if row["dead"] == "1"]
    assert len(dead) == 3 * 4
    assert {row["sqnr_db"] for row in dead} == {""}


def test_a_card_of_an_older_revision_says_blocks_by_number() -> None:
    place = place_by_number("double_blocks.3.img_attn.qkv")
    assert (place.block, place.stream, place.role) == ("double_blocks 3", "both", "qkv")
    place = place_by_number("final_layer.linear")
    assert (place.block, place.stream, place.role, place.short) == (
        "other layers",
        None,
        "other",
        "final_layer.linear",
    )
