import mlx.core as mx
import numpy as np
import pytest

from benchmarks.random_mmdit import flux_config, random_mmdit, sd3_config
from worker.families.diffusionkit.layers import linear_layers
from worker.families.diffusionkit.modulation import clear_modulation, modulated_modules, set_modulation

TIMESTEPS = [1000.0, 750.5, 3.0]


def cached(mmdit):
    return [
        {key: np.array(value) for key, value in module._modulation_params.items()}
        for module in modulated_modules(mmdit)
    ]


@pytest.mark.parametrize(("config", "batch"), [(sd3_config, 2), (flux_config, 1)])
def test_modulation_equals_diffusionkits_to_the_last_bit(config, batch):
    pooled = mx.random.normal((batch, 64))
    ours, theirs = random_mmdit(config()), random_mmdit(config())
    set_modulation(ours, pooled, mx.array(TIMESTEPS))
    theirs.cache_modulation_params(pooled, mx.array(TIMESTEPS))
    assert len(cached(ours)) == len(cached(theirs)) > 0
    for mine, reference in zip(cached(ours), cached(theirs), strict=True):
        assert mine.keys() == reference.keys() == set(TIMESTEPS)
        assert all(np.array_equal(mine[key], reference[key]) for key in reference)


def test_a_forward_pass_equals_diffusionkits_to_the_last_bit():
    x, text, pooled = mx.random.normal((2, 8, 8, 16)), mx.random.normal((2, 5, 1, 64)), mx.zeros((2, 64))
    ours, theirs = random_mmdit(sd3_config()), random_mmdit(sd3_config())
    set_modulation(ours, pooled, mx.array(TIMESTEPS))
    theirs.cache_modulation_params(pooled, mx.array(TIMESTEPS))
    timestep = mx.array([750.5, 750.5])
    assert np.array_equal(np.array(ours(x, text, timestep)), np.array(theirs(x, text, timestep)))


def test_the_weights_stay_and_a_second_image_is_as_right_as_the_first():
    mmdit = random_mmdit(sd3_config())
    before = {layer.path: layer.shape for layer in linear_layers(mmdit)}
    first, second = mx.random.normal((2, 64)), mx.random.normal((2, 64))
    set_modulation(mmdit, first, mx.array(TIMESTEPS))
    set_modulation(mmdit, second, mx.array(TIMESTEPS[:1]))
    again = cached(mmdit)
    assert {layer.path: layer.shape for layer in linear_layers(mmdit)} == before
    fresh = random_mmdit(sd3_config())
    set_modulation(fresh, second, mx.array(TIMESTEPS[:1]))
    for mine, reference in zip(again, cached(fresh), strict=True):
        assert mine.keys() == reference.keys()
        assert all(np.array_equal(mine[key], reference[key]) for key in reference)


def test_cleared_modulation_is_not_used_by_mistake():
    mmdit = random_mmdit(sd3_config())
    set_modulation(mmdit, mx.zeros((2, 64)), mx.array(TIMESTEPS))
    clear_modulation(mmdit)
    clear_modulation(mmdit)
    with pytest.raises(AttributeError):
        mmdit(mx.zeros((2, 8, 8, 16)), mx.zeros((2, 5, 1, 64)), mx.array([1000.0, 1000.0]))
