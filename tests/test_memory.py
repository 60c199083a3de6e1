import mlx.core as mx

from benchmarks.random_mmdit import random_mmdit, sd3_config
from worker.engine.memory import MAX_MICRO_BATCH, default_memory_limit, plan_memory
from worker.engine.states import KeptStates

GIB = 1024**3


def plan(memory_limit, samples=1000):
    mmdit = random_mmdit(sd3_config())
    return plan_memory(mmdit, samples=samples, rows=2, tokens=1178, itemsize=2, memory_limit=memory_limit)


def test_the_more_memory_the_more_samples_a_pass_up_to_a_bound():
    sizes = [plan(limit).micro_batch for limit in (1, 50 * 2**20, GIB, 64 * GIB)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[1] < sizes[3] == MAX_MICRO_BATCH


def test_no_micro_batch_is_larger_than_the_sample_set():
    assert plan(64 * GIB, samples=3).micro_batch == 3


def test_states_that_take_more_than_half_of_the_memory_go_to_files():
    kept = 1000 * 2 * 1178 * 64 * 2 * 2
    assert not plan(kept).keep_in_memory
    assert plan(GIB + 2 * kept).keep_in_memory


def test_this_machine_has_some_memory():
    assert default_memory_limit() > GIB / 2


def test_states_come_back_from_files_as_they_were_put():
    states = KeptStates(2, in_memory=False)
    assert (states.steps_done(1), states.get(1)) == (0, ())
    for steps_done in (3, 5):
        states.put(1, (mx.full((2, 3), steps_done, mx.bfloat16), mx.zeros((1,))), steps_done)
        image, text = states.get(1)
        assert (image.dtype, image.tolist(), text.tolist()) == (mx.bfloat16, [[steps_done] * 3] * 2, [0])
        # Read, computed on and put again: the file must not be overwritten unread.
        states.put(1, (image + 1, text), steps_done + 1)
        assert states.get(1)[0].tolist() == [[steps_done + 1] * 3] * 2
    assert states.steps_done(1) == 6
    states.drop(1)
    assert (states.steps_done(1), states.get(1)) == (0, ())
