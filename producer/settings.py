"""Turn command-line options into run settings. The model provides the defaults."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
from humanfriendly import format_size

from shared.errors import InputError
from shared.identity import digest_of
from shared.models import ModelSpec, Reference, model_spec, sampler_shift
from shared.runs import RunSettings
from shared.stores.store import MAX_PORTABLE_BYTES


def run_settings(
    *,
    model: str,
    prompts: Sequence[str],
    num_steps: int | None,
    cfg_weight: float | None,
    image_size: int | None,
    seed: int,
    use_t5: bool | None,
    checkpoint: Path | None,
    guidance: float | None = None,
    reference: Reference | None = None,
) -> RunSettings:
    """Return the checked settings of a run.

    Raises:
        InputError: an option does not fit the model, or is outside its limits.
    """
    spec = model_spec(model)
    if spec.family == "flux" and cfg_weight:
        raise InputError(f"{model} is distilled and takes no --cfg-weight; leave it out")
    if image_size and image_size % 16:
        below = max(16, image_size - image_size % 16)
        raise InputError(f"--image-size {image_size} is no multiple of 16; use {below} or {below + 16}")
    reference = reference or spec.reference
    if guidance is not None and spec.guidance is None:
        raise InputError(f"{model} has no guidance embedding; leave out --guidance")
    if guidance is not None and reference == "diffusionkit":
        raise InputError(
            f"DiffusionKit runs {model} without its guidance; leave out --guidance or --reference"
        )
    if guidance is None and reference == "published":
        guidance = spec.guidance
    image_size = image_size or spec.image_size
    settings = RunSettings(
        model=model,
        checkpoint_sha256=_file_digest(checkpoint) if checkpoint else None,
        num_steps=spec.num_steps if num_steps is None else num_steps,
        cfg_weight=spec.cfg_weight if cfg_weight is None else cfg_weight,
        image_size=image_size,
        seed=seed,
        shift=sampler_shift(spec, image_size, reference),
        reference=reference,
        guidance=guidance,
        use_t5=(spec.text_encoder_t5 == "required") if use_t5 is None else use_t5,
        precision=spec.precision,
        prompts_sha256=digest_of(list(prompts)),
    )
    spec.check(image_size=settings.image_size, use_t5=settings.use_t5)
    _check_shard_size(settings, spec)
    try:
        # msgspec checks limits when it decodes a struct, not when one is constructed.
        return msgspec.convert(msgspec.to_builtins(settings), RunSettings)
    except msgspec.ValidationError as error:
        raise InputError(f"these settings can't be: {error}") from None


def _check_shard_size(settings: RunSettings, spec: ModelSpec) -> None:
    """Refuse what no store would take, before anything is computed."""
    itemsize = 4 if settings.precision == "float32" else 2
    latent = itemsize * spec.transformer.latent_channels * math.prod(settings.latent_size)
    if latent * (settings.num_steps + 1) > MAX_PORTABLE_BYTES:
        raise InputError(
            f"an image of {settings.image_size} px with {settings.num_steps} steps makes a shard of about "
            f"{format_size(latent * (settings.num_steps + 1))}, and a store takes at most "
            f"{format_size(MAX_PORTABLE_BYTES, binary=True)} at once: give --num-steps "
            f"{MAX_PORTABLE_BYTES // latent - 1} or fewer, or a smaller --image-size"
        )


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
