"""Both engines measure the published pass, the embedding of a guidance included."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.published_models import POOLED, TEXT, TOKENS, cases, load_mlx, write_checkpoint
from benchmarks.random_mmdit import as_family
from shared.errors import ModelUnavailableError, RunMismatchError, TaskRefusedError
from shared.layout.sample_set import SampleSet
from worker.engine.exact import ExactEngine
from worker.engine.quantize import quantize_layer, swapped
from worker.engine.sketch import SketchEngine
from worker.engine.trajectory import Trajectory, denoise
from worker.families.diffusionkit.layers import linear_layers
from worker.families.diffusionkit.modulation import set_modulation
from worker.families.diffusionkit.quiet_imports import quiet_imports

with quiet_imports():
    from diffusionkit.mlx import FluxPipeline
    from diffusionkit.mlx.sampler import FluxSampler

pytestmark = pytest.mark.slow

DEV = cases(depth=1)[-1]
STEPS, SEED, GROUP = 3, 5, 64
GUIDANCE_LAYER = "guidance_in.mlp.layers.0"


class _Dev(FluxPipeline):
    """FLUX's sampler on a small transformer; its text comes from a seed, not from T5."""

    def __init__(self, mmdit: Any) -> None:
        self.mmdit, self.sampler, self.activation_dtype = mmdit, FluxSampler(shift=1.9), mx.float32

    def encode_text(self, text: str, cfg_weight: float, negative_text: str) -> tuple[mx.array, mx.array]:
        mx.random.seed(len(text))
        return mx.random.normal((1, TOKENS, TEXT)), mx.random.normal((1, POOLED))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> _Dev:
    path = tmp_path_factory.mktemp("dev") / "dev.safetensors"
    write_checkpoint(DEV, path)
    return _Dev(load_mlx(DEV, path, "float32", "published"))


def drawn(pipeline: _Dev) -> Trajectory:
    family = as_family(pipeline)
    return denoise(family, "a tree", seed=SEED, num_steps=STEPS, cfg_weight=0.0, latent_size=(8, 8))


@pytest.fixture(scope="module")
def trajectory(pipeline: _Dev) -> Trajectory:
    return drawn(pipeline)


@pytest.fixture(scope="module")
def samples(trajectory: Trajectory) -> SampleSet:
    x, sigmas = np.concatenate([np.array(x) for x in trajectory.x]), np.array(trajectory.sigmas)
    return SampleSet(
        x=x[:-1],
        timestep=np.array(trajectory.timesteps)[:-1],
        sigma=sigmas[:-1],
        x_next=x[1:],
        sigma_next=sigmas[1:],
        has_next=np.ones(STEPS, bool),
        step_index=np.arange(STEPS, dtype=np.int32),
        image=np.zeros(STEPS, np.int32),
        image_index=np.zeros(1, np.int32),
        conditioning={name: np.array(array)[None] for name, array in trajectory.conditioning.items()},
    )


def encoded(trajectory: Trajectory) -> tuple[mx.array, mx.array]:
    return trajectory.conditioning["pooled_conditioning"], trajectory.conditioning["conditioning"]


def velocities(pipeline: _Dev, samples: SampleSet, pooled: mx.array, text: mx.array) -> np.ndarray:
    """By the transformer as a whole, sample by sample."""
    set_modulation(pipeline.mmdit, pooled, mx.array(samples.timestep))
    answers = [
        pipeline.mmdit(mx.array(samples.x[[row]]), text[:, :, None, :], mx.array(samples.timestep[[row]]))
        for row in range(len(samples))
    ]
    return np.concatenate([np.array(answer) for answer in answers])


def test_steps_follow_the_velocity(pipeline: _Dev, trajectory: Trajectory, samples: SampleSet) -> None:
    v = velocities(pipeline, samples, *encoded(trajectory))
    np.testing.assert_allclose(samples.implied_velocity, v, atol=2e-5 * np.abs(v).max())
    assert samples.sigma_next[-1] == 0


@pytest.mark.parametrize(
    "layer", [GUIDANCE_LAYER, "multimodal_transformer_blocks.0.text_transformer_block.attn.k_proj"]
)
def test_exact_is_brute_force(pipeline: _Dev, trajectory: Trajectory, samples: SampleSet, layer: str) -> None:
    inputs = encoded(trajectory)
    right = velocities(pipeline, samples, *inputs)
    candidate = quantize_layer(pipeline.mmdit, layer, bits=3, group_size=GROUP)
    with swapped(pipeline.mmdit, layer, candidate.weight):
        wrong = velocities(pipeline, samples, *inputs)
    shard = ExactEngine(as_family(pipeline), samples, 0.0, GROUP).measure(layer, 3)
    error = ((wrong - right) ** 2).sum(axis=(1, 2, 3))[shard.step_index]
    assert error.min() > 0
    np.testing.assert_allclose(shard.squared_error, error, rtol=1e-3)


def test_a_sketch_reaches_the_guidance_embedding(pipeline: _Dev, samples: SampleSet) -> None:
    probes = 24
    sketch = SketchEngine(as_family(pipeline), samples, 0.0, GROUP, (6,)).measure(1, 0, probes)
    layers = [layer.path for layer in linear_layers(pipeline.mmdit)]
    assert not sketch.dead.any()
    exact = ExactEngine(as_family(pipeline), samples, 0.0, GROUP)
    for layer in (GUIDANCE_LAYER, "guidance_in.mlp.layers.2", "t_embedder.mlp.layers.0"):
        sketched = np.mean(sketch.products[layers.index(layer), 0] ** 2)
        shard = exact.measure(layer, 6)
        measured = shard.squared_error[list(shard.step_index).index(1)]
        # The mean of 24 squares scatters by sqrt(2 / 24) = 0.29.
        assert 1 / 3 < sketched / measured < 3


def test_another_guidance_is_another_model(pipeline: _Dev, samples: SampleSet) -> None:
    pipeline.mmdit.set_guidance(1.0, mx.float32)
    try:
        with pytest.raises(RunMismatchError, match="does not reproduce"):
            ExactEngine(as_family(pipeline), samples, 0.0, GROUP).measure(GUIDANCE_LAYER, 4)
        pipeline.mmdit.set_guidance(None, mx.float32)
        with pytest.raises(ModelUnavailableError, match="needs a guidance"):
            ExactEngine(as_family(pipeline), samples, 0.0, GROUP).measure(GUIDANCE_LAYER, 4)
    finally:
        pipeline.mmdit.set_guidance(DEV.guidance, mx.float32)


def test_a_latent_that_is_no_longer_finite_is_refused(pipeline: _Dev) -> None:
    linear = pipeline.mmdit.final_layer.linear
    bias, linear.bias = linear.bias, linear.bias + float("inf")
    try:
        with pytest.raises(TaskRefusedError, match="step 1: the latent is no longer finite"):
            drawn(pipeline)
    finally:
        linear.bias = bias
