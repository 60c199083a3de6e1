"""The judges: the whole trajectory differentiated at once, and finite differences of it."""

from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from benchmarks.random_mmdit import (
    as_family,
    draw_trajectory,
    euler_step,
    flux_config,
    random_pipeline,
    sd3_config,
)
from shared.metrics import BUCKETS, bucket_of
from shared.plan import Choice
from tests.toy_families import ToyFamily, TwoStreamFamily
from worker.engine.backward_trajectory import probe_of
from worker.engine.layers import get_weight, set_weight
from worker.engine.memory import TrajectoryPlan
from worker.engine.probed_trajectory import ProbedTrajectory, squared_norms, with_whole
from worker.engine.progress import KeptProgress
from worker.engine.quantize import swapped

STEPS, BUCKETS_OF_SKETCH = 4, 512
CASES = {
    "sd3": (lambda: as_family(random_pipeline(sd3_config())), 4.0),
    "flux": (lambda: as_family(random_pipeline(flux_config())), 0.0),
    "toy": (ToyFamily, 3.0),
    "two streams": (TwoStreamFamily, 0.0),
}
CHOICES = (Choice(bits=3, group_size=32), Choice(bits=8, group_size=32))
DEAD = "multimodal_transformer_blocks.1.text_transformer_block.attn.q_proj"


@cache
def case(name):
    new, cfg_weight = CASES[name]
    family = new()
    return family, draw_trajectory(family, num_steps=STEPS, cfg_weight=cfg_weight), cfg_weight


def paths(family):
    return [layer.path for layer in family.layers]


def new_engine(name, *, keep_packed=True):
    family, _, cfg_weight = case(name)
    return ProbedTrajectory(
        family,
        dict.fromkeys(paths(family), CHOICES),
        cfg_weight=cfg_weight,
        buckets=BUCKETS_OF_SKETCH,
        plan=TrajectoryPlan(heads_at_once=1, keep_packed=keep_packed),
    )


@cache
def measured(name):
    return new_engine(name).measure(case(name)[1], probe_seed=1, image_index=2)


def final_latent(name, x, from_step=0, weights=None):
    """x_N from what enters a step; with other weights at one step, if given: (step, weights)."""
    family, trajectory, cfg_weight = case(name)
    for step in range(from_step, STEPS):
        if weights is not None and step == weights[0]:
            held = [get_weight(family.transformer, layer) for layer in paths(family)]
            for layer, weight in zip(paths(family), weights[1], strict=True):
                set_weight(family.transformer, layer, weight)
        x = euler_step(family, x, trajectory.sigmas, step, trajectory.conditioning, cfg_weight)
        if weights is not None and step == weights[0]:
            for layer, weight in zip(paths(family), held, strict=True):
                set_weight(family.transformer, layer, weight)
    return x


def probe(name):
    return probe_of(1, 2, case(name)[1].x[-1].shape)


@cache
def held_gradients(name):
    """G_n of every layer and step, by differentiating the rest of the trajectory at once."""
    family, trajectory, _ = case(name)
    weights = [get_weight(family.transformer, layer) for layer in paths(family)]
    held = []
    for step in range(STEPS):

        def loss(*changed, step=step):
            return (probe(name) * final_latent(name, trajectory.x[step], step, (step, changed))).sum()

        gradients = mx.grad(loss, argnums=tuple(range(len(weights))))(*weights)
        mx.eval(gradients)
        held.append(gradients)
    return held


def by_third(name, value):
    """(L, 4) of what `value` says of each layer's sum of G_n over thirds, and over all steps."""
    held, layers = held_gradients(name), range(len(paths(case(name)[0])))
    thirds = [[n for n in range(STEPS) if bucket_of(n, STEPS) == third] for third in BUCKETS]
    return np.array(
        [
            [value(row, sum(held[n][row] for n in steps)) for steps in [*thirds, range(STEPS)]]
            for row in layers
        ]
    )


@pytest.mark.parametrize("name", CASES)
def test_products_and_norms_are_those_of_the_whole_trajectorys_gradient(name):
    family, _, _ = case(name)
    engine, found = new_engine(name), measured(name)
    norms = by_third(name, lambda row, gradient: float(mx.square(gradient).sum()))
    for column, choice in enumerate(CHOICES):
        deltas = {
            layer: engine._packed.difference(layer, choice)
            for layer in paths(family)
            if (layer, choice) in engine._measurable
        }
        products = by_third(
            name,
            lambda row, gradient, deltas=deltas: float((gradient * deltas.get(paths(family)[row], 0)).sum()),
        )
        sizes = np.array(
            [[float(mx.square(deltas.get(layer, mx.zeros(1))).sum())] for layer in paths(family)]
        )
        scale = np.sqrt(norms * sizes) + 1e-6
        np.testing.assert_allclose(with_whole(found.products)[:, column] / scale, products / scale, atol=1e-4)
    sketched = squared_norms(found.sketches)
    alive = norms > 1e-9
    errors = sketched[alive] / norms[alive] - 1
    # A sketch of a sum is one draw: 1 standard error is sqrt(2 / buckets).
    assert np.abs(errors).max() < 4.5 * np.sqrt(2 / BUCKETS_OF_SKETCH)
    assert np.sqrt((errors**2).mean()) < 1.3 * np.sqrt(2 / BUCKETS_OF_SKETCH)
    assert np.abs(sketched[~alive]).max(initial=0) < 1e-9


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_products_are_directional_derivatives_of_the_probed_final_latent(name):
    family, trajectory, _ = case(name)
    engine, found, r = new_engine(name), measured(name), np.array(probe(name), np.float64)

    def probed():
        return (r * np.array(final_latent(name, trajectory.x[0]), np.float64)).sum()

    for row in range(0, len(paths(family)), 4):
        layer = paths(family)[row]
        weight = get_weight(family.transformer, layer)
        delta = engine._packed.difference(layer, CHOICES[0])
        with swapped(family.transformer, layer, weight + delta):
            ahead = probed()
        with swapped(family.transformer, layer, weight - delta):
            behind = probed()
        expected, product = (ahead - behind) / 2, found.products[row, 0].sum()
        # What is left is of third order in dW, and float32's rounding of two trajectories.
        assert abs(product - expected) < 0.03 * abs(expected) + 2e-3, layer


@pytest.mark.parametrize("name", ["sd3", "two streams"])
def test_lambda_is_the_gradient_by_what_entered_the_first_step(name):
    found, (_, trajectory, _) = measured(name), case(name)
    assert found.steps_left == 0
    gradient = mx.grad(lambda x: (probe(name) * final_latent(name, x)).sum())(trajectory.x[0])
    np.testing.assert_allclose(found.cotangent, np.array(gradient), rtol=1e-4, atol=1e-5)
    way = mx.array(np.random.default_rng(0).standard_normal(gradient.shape).astype(np.float32))
    ahead, behind = (
        float((probe(name) * final_latent(name, trajectory.x[0] + change * way)).sum())
        for change in (1e-2, -1e-2)
    )
    assert (ahead - behind) / 2e-2 == pytest.approx(float((found.cotangent * np.array(way)).sum()), rel=2e-2)
    norms = found.cotangent_norm
    assert norms[0] == pytest.approx(np.linalg.norm(found.cotangent), rel=1e-6)
    assert norms[-1] == pytest.approx(np.sqrt(found.cotangent.size))
    assert (norms > 0).all()


def test_only_a_layer_that_no_gradient_reaches_is_dead():
    family, _, _ = case("sd3")
    found = measured("sd3")
    assert [path for path, reached in zip(paths(family), found.reached, strict=True) if not reached] == [DEAD]
    assert measured("flux").reached.all()


def test_half_precision_models_are_differentiated_in_float32():
    _, trajectory, cfg_weight = case("sd3")
    pipeline = random_pipeline(sd3_config())
    pipeline.mmdit.set_dtype(mx.float16)
    pipeline.activation_dtype = mx.float16
    engine = ProbedTrajectory(
        as_family(pipeline), {}, cfg_weight=cfg_weight, buckets=512, plan=new_engine("sd3")._plan
    )
    half, full = engine.measure(trajectory, probe_seed=1, image_index=2), measured("sd3")
    # Weights rounded to float16 differ by 2e-4; activations of float16 would differ by more.
    np.testing.assert_allclose(half.cotangent, full.cotangent, atol=5e-3)
    levels, expected = squared_norms(half.sketches), squared_norms(full.sketches)
    np.testing.assert_allclose(levels, expected, rtol=0.02, atol=1e-6)


def test_probes_are_the_same_everywhere_and_differ_by_seed_and_image():
    def signs(*seed):
        return np.array(probe_of(*seed, (1, 8, 8, 2)))

    assert set(np.unique(signs(0, 0)).tolist()) == {-1.0, 1.0}
    assert np.array_equal(signs(1, 2), signs(1, 2))
    assert not np.array_equal(signs(1, 2), signs(2, 1))


def equal(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in one.__slots__)


@pytest.mark.parametrize("keep_packed", [True, False])
def test_a_trajectory_that_was_left_goes_on_and_says_the_same(tmp_path: Path, keep_packed):
    family, trajectory, _ = case("sd3")
    told = []

    def stop(progress):
        told.append(progress)
        if progress.startswith(f"step 2/{STEPS} backward, 3 "):
            raise KeyboardInterrupt

    before = {name: np.array(value) for name, value in tree_flatten(family.transformer.parameters())}
    progress = KeptProgress(tmp_path / "task")
    progress.write_drawing(trajectory)
    with pytest.raises(KeyboardInterrupt):
        new_engine("sd3").measure(trajectory, probe_seed=1, image_index=2, progress=progress, check=stop)
    assert told[0].startswith(f"step {STEPS}/{STEPS} backward, ")
    assert progress.read().steps_left == 2
    told.clear()
    found = new_engine("sd3", keep_packed=keep_packed).measure(
        progress.read_drawing(), probe_seed=1, image_index=2, progress=progress, check=told.append
    )
    assert told[0].startswith(f"step 2/{STEPS} backward, ")
    assert equal(found, measured("sd3"))
    assert equal(progress.read(), found)
    after = {name: np.array(value) for name, value in tree_flatten(family.transformer.parameters())}
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_progress_that_can_not_be_read_or_written_is_only_lost(tmp_path: Path, caplog):
    _, trajectory, _ = case("sd3")
    folder = tmp_path / "task"
    progress = KeptProgress(folder)
    assert progress.read() is None
    assert progress.read_drawing() is None
    folder.write_text("in the way")
    progress.write_drawing(trajectory)
    assert "is not kept" in caplog.text
    folder.unlink()
    progress.write_drawing(trajectory)
    (folder / "found.npz").write_bytes(b"PK half of it")
    (folder / "drawing.npz").write_bytes((folder / "drawing.npz").read_bytes()[:100])
    assert progress.read() is None
    assert progress.read_drawing() is None
