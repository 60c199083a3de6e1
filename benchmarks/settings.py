"""The settings of a run, for benchmarks and tests."""

from msgspec.structs import replace

from shared.models import model_spec
from shared.runs import RunSettings


def run_settings(model: str = "tiny-sd3", **changes: object) -> RunSettings:
    """Return what the model's publisher recommends, with changes: seed 0, T5 only where the model needs it.

    Fields that are newer than the first run folders keep the values that those folders imply.
    """
    spec = model_spec(model)
    recommended = RunSettings(
        model=model,
        num_steps=spec.num_steps,
        cfg_weight=spec.cfg_weight,
        image_size=spec.image_size,
        seed=0,
        shift=spec.shift,
        use_t5=spec.text_encoder_t5 == "required",
        precision=spec.precision,
        prompts_sha256="0" * 64,
    )
    return replace(recommended, **changes)
