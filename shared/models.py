"""The models that a run can name, and what is known of each without loading it."""

from dataclasses import dataclass
from typing import Literal

from shared.errors import InputError

Family = Literal["sd3", "flux"]
Precision = Literal["float16", "float32"]

DEFAULT_MODEL = "argmaxinc/mlx-stable-diffusion-3-medium"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model's defaults. `family` decides the pipeline class, and whether CFG applies."""

    id: str
    family: Family
    image_size: int
    cfg_weight: float
    shift: float
    precision: Precision
    text_encoder_t5: Literal["optional", "required", "none"]
    built_in: bool = False
    """Made or shipped by this project: nothing is downloaded."""
    max_image_size: int | None = None
    """Pixels: what its table of positions covers; None where it has none."""

    def check(self, *, image_size: int, use_t5: bool) -> None:
        """Refuse what the model can't draw; asked at enqueueing, and by a worker once more.

        Raises:
            InputError: it says what to choose instead.
        """
        if self.max_image_size is not None and image_size > self.max_image_size:
            raise InputError(
                f"{self.id} draws at most {self.max_image_size} pixels, not {image_size}; "
                f"use --image-size {self.max_image_size}"
            )
        if use_t5 and self.text_encoder_t5 == "none":
            raise InputError(f"{self.id} has no T5; leave out --use-t5")
        if not use_t5 and self.text_encoder_t5 == "required":
            raise InputError(f"{self.id} can't do without T5; leave out --no-t5")


def _sd3(model_id: str, image_size: int = 512) -> ModelSpec:
    return ModelSpec(
        id=model_id,
        family="sd3",
        image_size=image_size,
        cfg_weight=7.5,
        shift=3.0,
        precision="float16",
        text_encoder_t5="optional",
        # 192 latent pixels a side, of 8 pixels each.
        max_image_size=1536,
    )


def _flux(model_id: str) -> ModelSpec:
    # DiffusionKit's FluxPipeline ignores the negative prompt and always wants T5.
    return ModelSpec(
        id=model_id,
        family="flux",
        image_size=512,
        cfg_weight=0.0,
        shift=1.0,
        precision="float16",
        text_encoder_t5="required",
    )


def _small(model_id: str, image_size: int, max_image_size: int, cfg_weight: float = 7.5) -> ModelSpec:
    return ModelSpec(
        id=model_id,
        family="sd3",
        image_size=image_size,
        cfg_weight=cfg_weight,
        shift=3.0,
        precision="float32",
        text_encoder_t5="none",
        built_in=True,
        max_image_size=max_image_size,
    )


MODELS: dict[str, ModelSpec] = {
    spec.id: spec
    for spec in (
        _sd3("argmaxinc/mlx-stable-diffusion-3-medium"),
        _sd3("argmaxinc/mlx-stable-diffusion-3.5-large"),
        _sd3("argmaxinc/mlx-stable-diffusion-3.5-large-4bit-quantized"),
        _flux("argmaxinc/mlx-FLUX.1-schnell"),
        _flux("argmaxinc/mlx-FLUX.1-schnell-4bit-quantized"),
        _flux("argmaxinc/mlx-FLUX.1-dev"),
        _small("tiny-sd3", image_size=64, max_image_size=128),
        _small("demo", image_size=64, max_image_size=64, cfg_weight=3.0),
    )
}


def model_spec(model_id: str) -> ModelSpec:
    """Return what is known of `model_id`.

    Raises:
        InputError: no such model.
    """
    try:
        return MODELS[model_id]
    except KeyError:
        raise InputError(f"no model named {model_id!r}; choose one of: {', '.join(MODELS)}") from None
