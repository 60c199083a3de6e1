"""What a run takes from its model, and what it keeps of runs made before."""

import msgspec
import pytest

from producer.settings import run_settings
from shared.errors import InputError
from shared.models import MODELS, model_spec, sampler_shift
from shared.runs import RunSettings
from tests.tasks import SETTINGS

DEV, SCHNELL = "argmaxinc/mlx-FLUX.1-dev", "argmaxinc/mlx-FLUX.1-schnell"


def settings(model: str, **options: object) -> RunSettings:
    given = dict.fromkeys(("cfg_weight", "image_size", "use_t5", "checkpoint")) | options
    return run_settings(model=model, prompts=["a cat"], num_steps=4, seed=0, **given)


def test_the_published_pass_is_the_default_but_for_the_demo() -> None:
    other = {spec.id for spec in MODELS.values() if settings(spec.id).reference != "published"}
    assert other == {"demo"}
    assert settings("demo", reference="published").reference == "published"


def test_what_no_store_takes_is_refused_before_it_is_computed() -> None:
    sd3 = "argmaxinc/mlx-stable-diffusion-3-medium"
    assert settings(sd3, image_size=1024)
    with pytest.raises(InputError, match=r"1536 px with 60 steps .* give --num-steps 55 or fewer"):
        given = dict.fromkeys(("cfg_weight", "use_t5", "checkpoint"))
        run_settings(model=sd3, prompts=["a cat"], num_steps=60, seed=0, image_size=1536, **given)


def test_flux_dev_has_a_guidance_and_a_shift_that_grows_with_the_image() -> None:
    assert (settings(DEV).guidance, settings(DEV, guidance=2.0).guidance) == (3.5, 2.0)
    # exp(mu), with mu 0.5 at 256 tokens and 1.15 at 4096.
    shifts = [settings(DEV, image_size=size).shift for size in (256, 512, 1024)]
    assert shifts == pytest.approx([1.648721, 1.877611, 3.158193], abs=1e-6)
    assert (settings(SCHNELL).guidance, settings(SCHNELL).shift) == (None, 1.0)


def test_diffusionkits_dev_is_schnell_s_configuration() -> None:
    old = settings(DEV, reference="diffusionkit")
    assert (old.reference, old.guidance, old.shift) == ("diffusionkit", None, 1.0)
    assert sampler_shift(model_spec(DEV), 512, "diffusionkit") == 1.0


def test_pass_and_guidance_are_part_of_a_run_and_a_run_made_before_keeps_its_id() -> None:
    assert SETTINGS.reference == "diffusionkit"
    fields = {k: v for k, v in msgspec.to_builtins(SETTINGS).items() if k not in ("reference", "guidance")}
    assert msgspec.convert(fields, RunSettings) == SETTINGS
    published = msgspec.structs.replace(SETTINGS, reference="published")
    guided = msgspec.structs.replace(published, guidance=3.5)
    assert len({run.id for run in (SETTINGS, published, guided)}) == 3
