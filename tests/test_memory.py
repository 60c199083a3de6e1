from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from benchmarks.random_mmdit import as_family, draw_samples, draw_trajectory, random_pipeline, sd3_config
from shared.costs import TaskSize, cost_of, trajectory_bytes
from shared.errors import MachineTooSmallError
from shared.layout.sample_set import SampleSet
from shared.models import MODELS
from shared.plan import Choice
from shared.transformer_shape import TransformerShape
from tests.garbage import collect_garbage
from tests.toy_families import ToyFamily
from worker.engine.batches import Batch, batch_forward
from worker.engine.block_gradients import record_states
from worker.engine.exact import ExactEngine
from worker.engine.limits import CACHE_SHARE, apply_limits, default_memory_limit
from worker.engine.memory import (
    TrajectoryPlan,
    memory_of_weights,
    passing_of,
    plan_memory,
    plan_trajectory,
    spare_memory,
)
from worker.engine.pass_memory import PassMemory, measure_pass
from worker.engine.probed_trajectory import ProbedTrajectory
from worker.engine.replay import START, Replay, State
from worker.engine.sketch import SketchEngine
from worker.engine.states import KeptStates

GIB = 1024**3


FAMILY = as_family(random_pipeline(sd3_config()))
STATE = 2 * 1178 * 64 * 2
A_PASS = PassMemory(working=40 * 2**20, state=STATE, tokens=2 * 1178)
WORKING = A_PASS.working * 5 // 4 + STATE


@pytest.fixture(autouse=True)
def no_garbage():
    """What other tests of this process left is gone before memory is planned, and not in its midst."""
    collect_garbage()
    mx.clear_cache()


def least():
    """What one sample's pass takes; other tests of this process may hold arrays, too."""
    return memory_of_weights(FAMILY.transformer) + WORKING


def plan(memory_limit, samples=1000):
    return plan_memory(FAMILY, A_PASS, samples=samples, memory_limit=memory_limit)


def test_the_more_memory_the_more_samples_a_pass_up_to_a_bound():
    sizes = [plan(limit).micro_batch for limit in (least(), least() + 2 * WORKING, 2 * GIB, 64 * GIB)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    # 8,000 tokens a pass, of samples with two rows of 1,178.
    assert sizes[1] == 3 == sizes[3]


def test_what_does_not_hold_one_pass_is_refused_and_not_tried_with_less():
    with pytest.raises(
        MachineTooSmallError, match=r"needs [\d.]+ MB of memory, this machine offers [\d.]+ MB"
    ):
        plan(least() - WORKING // 2)
    with pytest.raises(MachineTooSmallError, match="to try all the same"):
        spare_memory(FAMILY.transformer, memory_of_weights(FAMILY.transformer) // 2)


def test_no_micro_batch_is_larger_than_the_sample_set():
    assert plan(64 * GIB, samples=3).micro_batch == 3


def test_states_that_take_more_than_half_of_the_memory_go_to_files():
    kept = 1000 * STATE
    assert not plan(kept).keep_in_memory
    assert plan(GIB + 2 * kept).keep_in_memory


def test_this_machine_has_some_memory():
    assert default_memory_limit() > GIB / 2


def test_mlx_is_told_the_limits():
    before = mx.set_memory_limit(10 * GIB), mx.set_cache_limit(10 * GIB)
    apply_limits(3 * GIB)
    assert mx.set_memory_limit(before[0]) == 3 * GIB
    assert mx.set_cache_limit(before[1]) == 3 * GIB // CACHE_SHARE


def test_states_come_back_from_files_as_they_were_put():
    states = KeptStates(2, in_memory=False)
    assert (states.position(1), states.get(1)) == (0, START)
    for position in (3, 5):
        full, zeros = mx.full((2, 3), position, mx.bfloat16), mx.zeros((1,))
        states.put(1, State(({"image": full}, zeros, *[None] * (position - 2))))
        image, text = states.get(1).arrays
        assert (image.dtype, image.tolist(), text.tolist()) == (mx.bfloat16, [[position] * 3] * 2, [0])
        # Read, computed on and put again: the file must not be overwritten unread.
        states.put(1, State(({"image": image + 1}, text, *[None] * (position - 1))))
        assert states.get(1).outputs[0]["image"].tolist() == [[position + 1] * 3] * 2
    assert states.position(1) == 6
    states.drop(1)
    assert (states.position(1), states.get(1)) == (0, START)


def narrow_pipeline(dtype, **options):
    pipeline = random_pipeline(replace(sd3_config(hidden=128), dtype=dtype))
    samples = replace(draw_samples(pipeline, **options), has_next=np.zeros(6, bool))
    pipeline.mmdit.set_dtype(dtype)
    mx.eval(pipeline.mmdit.parameters())
    mx.clear_cache()
    return pipeline, samples


def taken_by(function):
    """Bytes that were in use at once while it ran."""
    mx.reset_peak_memory()
    function()
    return mx.get_peak_memory()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [mx.float16, mx.float32], ids=["float16", "float32"])
def test_the_sketch_keeps_its_limit_whatever_the_number_of_probes(dtype):
    pipeline, samples = narrow_pipeline(dtype, latent_size=(16, 16))
    limit = memory_of_weights(pipeline.mmdit) + 40 * 2**20
    at_once = []
    for probes in (1, 8, 32):
        engine = SketchEngine(as_family(pipeline), samples, 4.0, 64, (2, 4, 8), limit)
        assert taken_by(lambda engine=engine, probes=probes: engine.measure(0, 0, probes)) <= limit
        at_once.append(engine.at_once)
        del engine
    assert at_once[0] == 1
    # The limit mattered: without it all would have gone at once.
    assert 1 < at_once[2] < 32


def test_packed_candidates_are_kept_if_the_next_image_can_be_drawn_beside_them():
    family = as_family(random_pipeline(sd3_config()))
    candidates = {layer.path: (Choice(bits=4, group_size=32),) for layer in family.layers}
    # 4 bits, and a scale and a bias of 32 bits for 32 weights.
    packed = sum(layer.shape[0] * layer.shape[1] * 6 // 8 for layer in family.layers)

    def keeps(spare, drawing=0):
        return plan_trajectory(
            family,
            family.pass_size((16, 16), 6),
            rows=2,
            candidates=candidates,
            drawing_bytes=drawing,
            memory_limit=memory_of_weights(family.transformer) + spare,
        ).keep_packed

    step = trajectory_bytes(passing_of(family, family.pass_size((16, 16), 6), rows=2))
    assert [keeps(step + part) for part in (0, packed // 2, packed)] == [False, False, True]
    assert not keeps(step + packed, step + 1)
    with pytest.raises(MachineTooSmallError, match="one step of a backward trajectory"):
        keeps(step - 1)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "latent"), [(mx.float16, 24), (mx.float32, 32), (mx.float32, 4)])
def test_a_backward_trajectory_takes_what_its_cost_says(dtype, latent):
    """Within a tenth: with many tokens, where the pass decides, and with few, where reading does."""
    width, heads, depth, text_tokens = 256, 4, 2, 16
    pipeline = random_pipeline(sd3_config(depth=depth, hidden=width, heads=heads))
    pipeline.mmdit.set_dtype(dtype)
    mx.eval(pipeline.mmdit.parameters())
    family = as_family(pipeline)
    weights = sum(value.nbytes for _, value in tree_flatten(pipeline.mmdit.parameters()))
    trajectory = draw_trajectory(
        family, num_steps=1, cfg_weight=4.0, latent_size=(latent, latent), text_tokens=text_tokens
    )
    candidates = dict.fromkeys([layer.path for layer in family.layers], (Choice(bits=3, group_size=64),))
    engine = ProbedTrajectory(
        family,
        candidates,
        cfg_weight=4.0,
        buckets=512,
        plan=TrajectoryPlan(heads_at_once=heads, keep_packed=False),
    )
    spec = replace(
        MODELS["tiny-sd3"],
        precision=str(dtype).removeprefix("mlx.core."),
        parameters=weights // dtype.size,
        transformer=TransformerShape(
            width=width,
            heads=heads,
            double_blocks=depth,
            text_width=64,
            pooled_width=64,
            frequencies=64,
        ),
    )
    size = TaskSize(
        image_size=8 * latent, num_steps=1, rows=2, text_tokens=text_tokens, fused_attention=False
    )
    collect_garbage()
    mx.clear_cache()
    held = mx.get_active_memory() - weights
    taken = taken_by(lambda: engine.measure(trajectory, probe_seed=0, image_index=0)) - held
    assert taken == pytest.approx(cost_of("levels", spec, size).peak_bytes, rel=0.1)


@pytest.mark.parametrize("dtype", [mx.float16, mx.float32], ids=["float16", "float32"])
def test_exact_keeps_its_limit(dtype):
    pipeline, samples = narrow_pipeline(dtype, latent_size=(16, 16))
    limit = memory_of_weights(pipeline.mmdit) + 10 * 2**20
    engine = ExactEngine(as_family(pipeline), samples, 4.0, 64, limit)
    assert 1 < engine.micro_batch < len(samples)
    block = "multimodal_transformer_blocks.0.image_transformer_block"
    layers = (f"{block}.adaLN_modulation.layers.1", f"{block}.mlp.fc1")
    assert taken_by(lambda: [engine.measure(layer, 4) for layer in layers]) <= limit


class Greedy(ToyFamily):
    """Its pass takes 16 MB a sample, of which its configuration says nothing."""

    def velocity(self, x, sigma, conditioning):
        wide = x.reshape(len(x), -1, 1) * mx.ones(4096)
        return super().velocity(x, sigma, conditioning) + wide.mean(-1).reshape(x.shape)


def test_a_pass_is_planned_with_what_it_really_takes():
    family, rng = Greedy(), np.random.default_rng(0)
    conditioning = family.encode("a red circle", 4.0)
    samples = SampleSet(
        x=rng.standard_normal((12, 8, 8, 8), np.float32),
        timestep=np.ones(12, np.float32),
        sigma=np.ones(12, np.float32),
        x_next=np.zeros((12, 8, 8, 8), np.float32),
        sigma_next=np.zeros(12, np.float32),
        has_next=np.zeros(12, bool),
        step_index=np.arange(12, dtype=np.int32),
        image=np.zeros(12, np.int32),
        image_index=np.zeros(1, np.int32),
        conditioning={name: np.array(array)[None] for name, array in conditioning.items()},
    )
    limit = memory_of_weights(family.transformer) + 100 * 2**20
    engine = ExactEngine(family, samples, 4.0, 32, limit)
    assert 2 <= engine.micro_batch <= 6
    assert 32 * 2**20 < taken_by(lambda: engine.measure("layers.1.up", 4)) <= limit
    with pytest.raises(MachineTooSmallError, match="with one sample's pass"):
        ExactEngine(family, samples, 4.0, 32, memory_of_weights(family.transformer) + 10 * 2**20)


def test_what_a_state_takes_is_known_before_it_is_computed():
    pipeline = random_pipeline(sd3_config())
    samples, family = draw_samples(pipeline), as_family(pipeline)
    batch = Batch(index=0, rows=np.array([0]))
    forward = batch_forward(family, samples, batch, rows=2, dtype=mx.float32)
    replay = Replay(family.stages, family.after_blocks, forward)
    one_pass = measure_pass(family, replay, forward, mx.float32)
    states, _ = record_states(replay, forward)
    assert one_pass.state == max(sum(array.nbytes for array in state.arrays) for state in states)
    # Image and text, and one token of the timestep.
    assert one_pass.tokens == 2 * (16 + 6 + 1)
