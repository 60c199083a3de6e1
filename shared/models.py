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


def _sd3(model_id: str, image_size: int = 512) -> ModelSpec:
    return ModelSpec(
        id=model_id,
        family="sd3",
        image_size=image_size,
        cfg_weight=7.5,
        shift=3.0,
        precision="float16",
        text_encoder_t5="optional",
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


def _small(model_id: str, image_size: int, cfg_weight: float = 7.5) -> ModelSpec:
    return ModelSpec(
        id=model_id,
        family="sd3",
        image_size=image_size,
        cfg_weight=cfg_weight,
        shift=3.0,
        precision="float32",
        text_encoder_t5="none",
        built_in=True,
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
        _small("tiny-sd3", image_size=64),
        _small("demo", image_size=64, cfg_weight=3.0),
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
