"""The published forward pass is that of diffusers, on checkpoints in the publishers' own layouts."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.published_models import (
    Case,
    cases,
    load_mlx,
    mlx_velocity,
    new_question,
    timestep_of,
    write_checkpoint,
)
from benchmarks.random_mmdit import as_family
from shared.models import MODELS, model_spec, sampler_shift
from worker.families.diffusionkit.published import PublishedMMDiT, published_timesteps
from worker.families.diffusionkit.quiet_imports import quiet_imports

with quiet_imports():
    from diffusionkit.mlx import DiffusionPipeline
    from diffusionkit.mlx.sampler import FluxSampler, ModelSamplingDiscreteFlow

pytestmark = pytest.mark.slow

CASES = cases(depth=2)
BY_NAME = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    paths = {case.name: folder / f"{case.model_id.rpartition('/')[2]}.safetensors" for case in CASES}
    for case in CASES:
        write_checkpoint(case, paths[case.name])
    return paths


@pytest.fixture(scope="module")
def judge() -> Iterator[Any]:
    """Importing diffusers takes seconds."""
    from benchmarks import diffusers_judge, published

    yield SimpleNamespace(measure=published.measure, relative=published.relative, **vars(diffusers_judge))


@BY_NAME
def test_float32_is_diffusers_within_1e_5(case: Case, checkpoints: dict[str, Path], judge: Any) -> None:
    # A guidance of 1, so that no angle exceeds a timestep's: at 3500 the last bit of torch's exp is 4e-4 rad.
    case = replace(case, guidance=case.guidance and 1.0)
    row = judge.measure(case, checkpoints[case.name], "float32")
    assert max(row.published) < 1e-5
    assert min(row.diffusionkit) > 1e-3


@BY_NAME
def test_16_bits_differ_by_their_own_rounding(case: Case, checkpoints: dict[str, Path], judge: Any) -> None:
    row = judge.measure(case, checkpoints[case.name], case.half)
    # Of float32; diffusers in the same dtype is off by as much.
    assert max(row.published) < 1.3 * max(row.diffusers)
    assert max(row.published) < {"float16": 3e-3, "bfloat16": 2e-2}[case.half]


def test_guidance_is_embedded_as_diffusers_embeds_it(checkpoints: dict[str, Path], judge: Any) -> None:
    dev = CASES[-1]
    path, question = checkpoints[dev.name], new_question("float32")
    ours, theirs = load_mlx(dev, path, "float32", "published"), judge.load_diffusers(dev, path, "float32")
    answers = []
    for guidance in (0.0, 1.5, 3.5):
        ours.set_guidance(guidance, mx.float32)
        answers.append(mlx_velocity(ours, question, 500.0, "float32"))
        asked = replace(dev, guidance=guidance)
        right = judge.diffusers_velocity(asked, theirs, question, 500.0, "float32")
        assert judge.relative(answers[-1], right) < 1e-5 * max(1.0, guidance)
    assert judge.relative(answers[0], answers[2]) > 0.1


@BY_NAME
def test_a_familys_pass_is_the_transformers_and_rounds_levels_as_its_publishers(
    case: Case, checkpoints: dict[str, Path]
) -> None:
    mmdit = load_mlx(case, checkpoints[case.name], case.half, "published")
    question, dtype = new_question(case.half, rows=1), getattr(mx, case.half)
    sampler = (FluxSampler if case.is_flux else ModelSamplingDiscreteFlow)()
    family = as_family(SimpleNamespace(mmdit=mmdit, sampler=sampler, activation_dtype=dtype))
    conditioning = {"conditioning": question.text, "pooled_conditioning": question.pooled}
    velocity = family.velocity(
        mx.array(question.x).astype(dtype),
        mx.array([0.7773]),
        {name: mx.array(values) for name, values in conditioning.items()},
    )
    assert velocity.dtype == dtype, "nothing is promoted to float32"
    timestep = timestep_of(case, 0.7773, case.half, "published")
    whole = mlx_velocity(mmdit, question, timestep, case.half)
    assert np.array_equal(np.array(velocity.astype(mx.float32)), whole)


@BY_NAME
def test_keys_keep_their_biases(case: Case, checkpoints: dict[str, Path]) -> None:
    mmdit = load_mlx(case, checkpoints[case.name], case.half, "published")
    keys = [module for name, module in mmdit.named_modules() if name.endswith("k_proj")]
    assert len(keys) == 6 if case.is_flux else 4
    assert all(0.05 < float(mx.sqrt(mx.mean(mx.square(key.bias))).item()) < 0.2 for key in keys)


SCHEDULES = [
    # Shift, whether it grows with the image, pixels, steps: as in the models' scheduler_config.json.
    ("argmaxinc/mlx-stable-diffusion-3-medium", {"shift": 3.0}, 512, 28),
    ("argmaxinc/mlx-FLUX.1-schnell", {"shift": 1.0}, 512, 4),
    ("argmaxinc/mlx-FLUX.1-dev", {"shift": 3.0, "use_dynamic_shifting": True}, 512, 20),
    ("argmaxinc/mlx-FLUX.1-dev", {"shift": 3.0, "use_dynamic_shifting": True}, 1024, 7),
]


@pytest.mark.parametrize(("model", "config", "image_size", "steps"), SCHEDULES)
def test_noise_levels_are_those_of_diffusers(
    model: str, config: dict[str, Any], image_size: int, steps: int
) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    spec = model_spec(model)
    is_flux = spec.family == "flux"
    sampler = (FluxSampler if is_flux else ModelSamplingDiscreteFlow)(
        shift=sampler_shift(spec, image_size, "published")
    )
    sigmas = DiffusionPipeline.get_sigmas(SimpleNamespace(), sampler, steps)
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    if is_flux:
        tokens = (image_size // 16) ** 2
        mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15) if spec.shift_by_size else None
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    else:
        scheduler.set_timesteps(steps)
    np.testing.assert_allclose(np.array(sigmas), scheduler.sigmas.numpy(), atol=1e-6)
    timesteps = published_timesteps(sampler, sigmas, mx.float32)
    np.testing.assert_allclose(np.array(timesteps)[:-1], scheduler.timesteps.numpy(), atol=1e-3)


def test_timesteps_are_rounded_where_the_publishers_round_them() -> None:
    sigmas = mx.array([0.7773])
    assert published_timesteps(ModelSamplingDiscreteFlow(), sigmas, mx.float16).item() == pytest.approx(777.3)
    # bfloat16(1000 * bfloat16(0.7773))
    assert published_timesteps(FluxSampler(), sigmas, mx.bfloat16).item() == 776.0


def test_only_dev_embeds_a_guidance() -> None:
    embedding = {case.model_id for case in CASES if PublishedMMDiT(case.config).embeds_guidance}
    assert embedding == {"argmaxinc/mlx-FLUX.1-dev"}
    assert {spec.id for spec in MODELS.values() if spec.guidance is not None} == embedding
