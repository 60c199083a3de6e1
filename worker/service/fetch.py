"""Downloading and checking a model before this machine joins a fleet."""

from collections.abc import Iterator

from shared.models import PARTS, Part, model_spec, sampler_shift
from shared.runs import RunSettings


def fetch_model(model: str, *, use_t5: bool | None = None) -> Iterator[tuple[Part, str]]:
    """Download what is missing of a model, part by part; yield each part with the sha256 over its files.

    Hugging Face's library shows a bar for each file that it downloads, and goes on with one that was begun.

    Args:
        model: its id.
        use_t5: None for what the model needs.

    Raises:
        InputError: there is no such model, or it has no T5.
        ModelUnavailableError: a file can't be had, or holds another model.
    """
    from worker.families.registry import load_family

    family = load_family(_settings(model, use_t5=use_t5), None, ("transformer",))
    for part in PARTS:
        family.hold(part)
        yield part, family.part_fingerprints()[part]
        family.keep_only("transformer")


def _settings(model: str, *, use_t5: bool | None) -> RunSettings:
    """Settings of a run that is never made: what decides the files is in them."""
    spec = model_spec(model)
    return RunSettings(
        model=model,
        num_steps=spec.num_steps,
        cfg_weight=spec.cfg_weight,
        image_size=spec.image_size,
        seed=0,
        shift=sampler_shift(spec, spec.image_size, "published"),
        use_t5=(spec.text_encoder_t5 == "required") if use_t5 is None else use_t5,
        precision=spec.precision,
        prompts_sha256="0" * 64,
        reference="published",
        guidance=spec.guidance,
    )
