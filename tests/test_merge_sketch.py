"""The judge: output changes u that are known, so that ||u||^2 needs no estimating."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from producer.report.render import render_report
from producer.results.merge import FinishedTask
from producer.results.merge_sketch import FinishedSketch, merge_sketch
from producer.results.results import MissingSketch, MissingTask, decode_results, encode_results
from producer.results.sketch import as_the_card_has_it, estimate
from producer.results.verify import pairs_to_verify
from shared.errors import RunMismatchError
from shared.kinds.calibration import CalibrationTask
from shared.kinds.registry import decode_task, encode_task
from shared.kinds.sketch import SketchShard, SketchTask
from tests.reports import contents_of

BITS = (2, 4, 8)
ELEMENTS = 256


def changes(layers, samples, seed=0):
    """u (layers, bits, samples, elements): falling with bits, differing by layer and sample."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=(layers, 1, samples, 1))) * 2.0 ** -np.array(BITS)[:, None, None]
    return scale * rng.normal(size=(layers, len(BITS), samples, ELEMENTS))


def sketch_shard(u, sample, probes, rng, dead=()):
    layers = len(u)
    r = rng.choice([-1.0, 1.0], size=(probes, ELEMENTS))
    is_dead = np.isin(np.arange(layers), dead)
    return SketchShard(
        image_index=np.array(sample // 6),
        step_index=np.array(sample % 6),
        bits=np.array(BITS),
        products=np.where(is_dead[:, None, None], 0.0, u[:, :, sample] @ r.T),
        squared_reference=np.array(100.0 + sample),
        output_size=np.array(ELEMENTS),
        dead=is_dead,
        measurable=np.ones(layers, bool),
        weight_squared_error=np.tile(4.0 ** -np.array(BITS), (layers, 1)),
        weight_squared_norm=np.ones(layers),
        bits_per_weight=np.tile(np.array(BITS) + 0.5, (layers, 1)),
    )


def test_scores_are_unbiased_and_their_standard_errors_honest():
    u = changes(layers=300, samples=4)
    rng = np.random.default_rng(1)
    estimates = estimate(sketch_shard(u, sample, 16, rng) for sample in range(4))
    squared = (u**2).sum(axis=-1)
    np.testing.assert_allclose((estimates.squared_error / squared).mean(), 1, atol=0.03)
    truth = np.sqrt(squared.sum(axis=-1) / estimates.squared_reference.sum())
    z = (estimates.relative_error - truth)[:, 0] / estimates.standard_error[:, 0]
    assert 0.8 < z.std() < 1.2
    assert abs(z.mean()) < 0.3


def test_more_probes_of_a_sample_are_pooled_whatever_the_order():
    u, rng = changes(layers=3, samples=2), np.random.default_rng(1)
    shards = [sketch_shard(u, sample, probes, rng) for sample, probes in ((0, 4), (1, 4), (0, 8), (1, 1))]
    estimates, again = estimate(shards), estimate(reversed(shards))
    assert np.array_equal(estimates.squared_error, again.squared_error)
    products = np.concatenate([shards[0].products, shards[2].products], axis=-1)
    np.testing.assert_allclose(estimates.squared_error[..., 0], (products**2).mean(axis=-1))
    fewer = estimate(shards[:2])
    ratio = (estimates.variance / estimates.squared_error**2) / (fewer.variance / fewer.squared_error**2)
    np.testing.assert_allclose(ratio[:, :, 0], 6 / 14)


def test_sketches_that_do_not_belong_together_are_refused():
    u, rng = changes(layers=3, samples=2), np.random.default_rng(1)
    shard = sketch_shard(u, 0, 2, rng)
    with pytest.raises(RunMismatchError, match="bit widths"):
        estimate([shard, replace(sketch_shard(u, 1, 2, rng), bits=np.array([2, 4, 6]))])
    with pytest.raises(RunMismatchError, match="no sample"):
        estimate([])


def finished_sketches(example, samples=24, probes=8, **options):
    u, rng = changes(len(example.card.layers), samples), np.random.default_rng(2)
    tasks = [
        SketchTask(
            run=example.run,
            sensitivity=example.sensitivity,
            store_id="store",
            bits=BITS,
            sample=sample,
            probe_batch=0,
            probes=probes,
        )
        for sample in range(samples)
    ]
    return [
        FinishedSketch(
            task=task, shard=sketch_shard(u, task.sample, probes, rng, **options), record=example.record(task)
        )
        for task in tasks
    ]


def merged(example, sketches, verified=(), **options):
    return merge_sketch(
        sketches,
        verified,
        run=example.run,
        sensitivity=example.sensitivity,
        card=example.card,
        **options,
    )


def test_results_have_the_usual_form_and_a_report(make_example):
    example = make_example()
    image = CalibrationTask(run=example.run, store_id="store", image_index=0, prompt="a", seed=0)
    records = [example.record(image)]
    results = merged(example, finished_sketches(example, dead=(3,)), calibration_records=records)
    assert len(results.measurements) == len(example.card.layers) * len(BITS)
    pair = results.measurements[0]
    everywhere = pair.buckets["all"]
    assert everywhere.relative_error_low < everywhere.relative_error < everywhere.relative_error_high
    assert 0 < pair.standard_error < everywhere.relative_error
    assert everywhere.cosine is everywhere.max_abs is everywhere.noise_relative_error is None
    assert set(pair.buckets) == {"all", "early", "mid", "late"}
    assert {pair.layer for pair in results.measurements if pair.dead} == {example.card.layers[3].path}
    assert [(host.kind, host.tasks) for host in results.hosts] == [("calibration", 1), ("sketch", 24)]
    assert results.complete
    assert decode_results(encode_results(results)) == results
    page = render_report(contents_of(results))
    assert "Sketch against exact" not in page
    assert f"0 of 0 (layer, bits) measured exactly, {len(results.measurements)} estimated by a sketch" in page
    assert page.count("<small>estimated</small>") == len(results.measurements) - len(BITS)
    assert "<small>exact</small>" not in page


def test_what_a_sketch_lacks_is_told(make_example):
    example = make_example()
    task = example.task(example.card.layers[2].path, 4)
    exact = FinishedTask(task=task, shard=example.shard(task), record=example.record(task))
    results = merged(
        example,
        finished_sketches(example)[:22],
        [exact],
        missing=[MissingTask(layer=example.card.layers[0].path, bits=2, reason="queued")],
        missing_sketches=[
            MissingSketch(sample=23, probe_batch=0, reason="failed on air"),
            MissingSketch(sample=22, probe_batch=0, reason="queued"),
        ],
    )
    assert not results.complete
    assert [sketch.sample for sketch in results.missing_sketches] == [22, 23]
    assert decode_results(encode_results(results)) == results
    page = render_report(contents_of(results))
    assert "1 of 2 (layer, bits) measured exactly" in page
    assert "1 (layer, bits) missing, queued" in page
    assert "1 sketches missing, failed on air" in page
    assert page.count("<small>exact</small>") == 1
    assert '<li class="path">sample 23, probes 0</li>' in page


def test_verified_pairs_are_exact_and_held_against_the_sketch(make_example):
    example = make_example()
    layer = example.card.layers[2].path
    task = example.task(layer, 4)
    exact = FinishedTask(task=task, shard=example.shard(task), record=example.record(task))
    sketches = finished_sketches(example)
    results, sketch_only = merged(example, sketches, [exact]), merged(example, sketches)
    found = {(pair.layer, pair.bits): pair for pair in results.measurements}
    assert found[layer, 4].standard_error is None
    assert found[layer, 4].buckets["all"].cosine is not None
    assert found[layer, 2].standard_error is not None
    assert len(results.measurements) == len(sketch_only.measurements)
    (pair,) = results.verified
    before = {(pair.layer, pair.bits): pair for pair in sketch_only.measurements}[layer, 4]
    assert (pair.layer, pair.bits) == (layer, 4)
    assert pair.exact_relative_error == found[layer, 4].buckets["all"].relative_error
    assert pair.sketch_relative_error == before.buckets["all"].relative_error
    page = render_report(contents_of(results))
    assert "Sketch against exact" in page
    assert f"{pair.sketch_relative_error / pair.exact_relative_error:.3g}</td>" in page


def test_another_run_or_model_is_refused(make_example):
    example, other = make_example(), make_example(num_steps=7)
    with pytest.raises(RunMismatchError, match="another run"):
        merged(example, finished_sketches(other))
    sketch = finished_sketches(example)[0]
    stranger = msgspec.structs.replace(sketch.record, fingerprint="e" * 64)
    with pytest.raises(RunMismatchError, match="another model"):
        merged(example, [replace(sketch, record=stranger)])


def test_what_is_verified_is_what_could_change_a_plan(make_example):
    example = make_example()
    estimates = estimate(sketch.shard for sketch in finished_sketches(example, dead=(1,)))
    pairs = pairs_to_verify(estimates, example.card, 10)
    assert len(pairs) == len(set(pairs)) == 10
    assert example.card.layers[1].path not in {layer for layer, _ in pairs}
    # Two layers only: what is certain needs no verifying, however large its error.
    variance = np.zeros_like(estimates.variance)
    variance[5] = estimates.variance[5]
    certain = replace(estimates, variance=variance)
    assert {layer for layer, _ in pairs_to_verify(certain, example.card, 10)} == {example.card.layers[5].path}


def test_a_task_survives_its_json_and_other_probes_are_other_tasks(make_example):
    task = finished_sketches(make_example(), samples=1)[0].task
    assert decode_task(encode_task(task)) == task
    ids = {task.id} | {
        msgspec.structs.replace(task, **{name: value}).id
        for name, value in (("sample", 1), ("probe_batch", 1), ("probes", 9), ("bits", (2, 4)))
    }
    assert len(ids) == 5


def test_a_card_from_before_the_patch_embedding_was_measured_still_fits(make_example):
    example = make_example()
    layers = len(example.card.layers)
    u, rng = changes(layers=layers + 1, samples=1), np.random.default_rng(1)
    shard = sketch_shard(u, 0, 2, rng)
    fitted = as_the_card_has_it(shard, example.card)
    # After the embedders: context, two of the timestep, one of the pooled text.
    others = [index for index in range(layers + 1) if index != 4]
    assert np.array_equal(fitted.products, shard.products[others])
    assert fitted.bits_per_weight.shape == (layers, len(BITS))
    assert as_the_card_has_it(fitted, example.card) is fitted
