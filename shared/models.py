"""The models that a run can use, and what is known about each without loading it."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from shared.choices import DEFAULT_MODEL
from shared.errors import InputError
from shared.transformer_shape import TransformerShape

Precision = Literal["float16", "bfloat16", "float32"]
Part = Literal["transformer", "text_encoder", "vae"]
Reference = Literal["published", "diffusionkit"]
"""Which forward pass to run: the one its publishers describe, or DiffusionKit's; see docs/models.md."""

PARTS: tuple[Part, ...] = get_args(Part)
QUANTIZED_SUFFIX = "-4bit-quantized"
"""DiffusionKit's names of quantized checkpoints end like this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model and the defaults that its publisher recommends."""

    id: str
    family: str
    """The name of its family in worker/families/registry.py, which decides how it is loaded and run."""
    num_steps: int
    image_size: int
    """Width and height of the image in pixels."""
    cfg_weight: float
    shift: float
    """Shift of the sampler's noise levels; see `sampler_shift`."""
    shift_by_size: bool = False
    """The published sampler's shift grows with the image size; `shift` is then DiffusionKit's."""
    guidance: float | None = None
    """Default input of the guidance embedding of a distilled model; None if it has none."""
    reference: Reference = "published"
    """The default forward pass."""
    precision: Precision
    """Number format of weights and activations."""
    text_encoder_t5: Literal["optional", "required", "none"]
    parameters: int
    """Number of parameters of the transformer, without tables."""
    transformer: TransformerShape
    clip_tokens: int = 77
    """Tokens of a prompt of a CLIP text encoder; T5's place beside them is as long where T5 is left out."""
    t5_tokens: int = 512
    built_in: bool = False
    """Part of this project: nothing needs to be downloaded."""
    max_image_size: int | None = None
    """Largest image in pixels that its table of positions covers; None if it has no table."""

    def check(self, *, image_size: int, use_t5: bool) -> None:
        """Check that the model can draw this. Both the producer and the worker check.

        Raises:
            InputError: the model can't; the message says what to choose instead.
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

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return 4 if self.precision == "float32" else 2

    @property
    def weight_bytes(self) -> int:
        """Size of the transformer's weights in bytes."""
        return self.parameters * self.itemsize

    def text_encoder_bytes(self, *, use_t5: bool) -> int:
        """Size of the text encoders' weights in bytes, in 16 bits; 0 for built-in models."""
        if self.built_in:
            return 0
        clip_l, clip_g, t5 = 123_060_480, 694_659_840, 4_762_310_656
        return 2 * (clip_l + (clip_g if self.family == "sd3" else 0) + (t5 if use_t5 else 0))

    def text_tokens(self, *, use_t5: bool) -> int:
        """Tokens of text in a row of conditioning."""
        if self.family == "flux":
            return self.t5_tokens
        return self.clip_tokens + (self.t5_tokens if use_t5 else self.clip_tokens)


def _sd3(
    model_id: str, parameters: int, *, blocks: int, num_steps: int, image_size: int, cfg_weight: float
) -> ModelSpec:
    return ModelSpec(
        id=model_id,
        family="sd3",
        num_steps=num_steps,
        image_size=image_size,
        cfg_weight=cfg_weight,
        shift=3.0,
        precision="float16",
        text_encoder_t5="optional",
        parameters=parameters,
        transformer=TransformerShape(width=64 * blocks, heads=blocks, double_blocks=blocks),
        # 192 latent pixels per side, each of 8 pixels.
        max_image_size=1536,
    )


def _flux(
    model_id: str,
    parameters: int,
    *,
    num_steps: int,
    t5_tokens: int,
    guidance: float | None = None,
    shift_by_size: bool = False,
) -> ModelSpec:
    # DiffusionKit's FluxPipeline ignores the negative prompt and always wants T5.
    return ModelSpec(
        id=model_id,
        family="flux",
        num_steps=num_steps,
        image_size=1024,
        cfg_weight=0.0,
        guidance=guidance,
        shift=1.0,
        shift_by_size=shift_by_size,
        precision="bfloat16",
        text_encoder_t5="required",
        parameters=parameters,
        transformer=TransformerShape(
            width=3072,
            heads=24,
            double_blocks=19,
            single_blocks=38,
            pooled_width=768,
            text_ends_early=False,
            embeds_guidance=guidance is not None,
        ),
        t5_tokens=t5_tokens,
    )


def _small(
    model_id: str,
    parameters: int,
    *,
    max_image_size: int,
    cfg_weight: float,
    width: int,
    heads: int,
    blocks: int,
    prompt_tokens: int,
    reference: Reference = "published",
) -> ModelSpec:
    return ModelSpec(
        id=model_id,
        family="sd3",
        num_steps=50,
        image_size=64,
        cfg_weight=cfg_weight,
        shift=3.0,
        precision="float32",
        text_encoder_t5="none",
        parameters=parameters,
        transformer=TransformerShape(width=width, heads=heads, double_blocks=blocks, pooled_width=128),
        clip_tokens=prompt_tokens,
        built_in=True,
        reference=reference,
        max_image_size=max_image_size,
    )


MODELS: dict[str, ModelSpec] = {
    spec.id: spec
    for spec in (
        _sd3(DEFAULT_MODEL, 2_028_328_000, blocks=24, num_steps=50, image_size=512, cfg_weight=7.5),
        _sd3(
            "argmaxinc/mlx-stable-diffusion-3.5-large",
            8_056_627_520,
            blocks=38,
            num_steps=28,
            image_size=1024,
            cfg_weight=3.5,
        ),
        _flux("argmaxinc/mlx-FLUX.1-schnell", 11_891_295_296, num_steps=4, t5_tokens=256),
        _flux(
            "argmaxinc/mlx-FLUX.1-dev",
            11_901_525_056,
            num_steps=50,
            t5_tokens=512,
            guidance=3.5,
            shift_by_size=True,
        ),
        _small(
            "tiny-sd3",
            706_112,
            max_image_size=128,
            cfg_weight=7.5,
            width=64,
            heads=2,
            blocks=3,
            prompt_tokens=32,
        ),
        # Trained in DiffusionKit's modules: their forward pass is the one that its publishers run.
        _small(
            "demo",
            4_003_392,
            max_image_size=64,
            cfg_weight=3.0,
            width=128,
            heads=4,
            blocks=6,
            prompt_tokens=16,
            reference="diffusionkit",
        ),
    )
}


def sampler_shift(spec: ModelSpec, image_size: int, reference: Reference) -> float:
    """Return the shift s of the noise levels s t / (1 + (s - 1) t) for a square image.

    For FLUX.1-dev, s = exp(mu), where mu grows linearly with the number of tokens of 16 x 16 pixels: 0.5 at
    256 tokens and 1.15 at 4096 (`get_schedule` in Black Forest Labs' flux/sampling.py). It is rounded to six
    decimals, so that run ids agree on all machines.

    Args:
        spec: the model.
        image_size: width and height in pixels.
        reference: which forward pass the run takes.
    """
    if not spec.shift_by_size or reference == "diffusionkit":
        return spec.shift
    tokens = (image_size // 16) ** 2
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    return round(math.exp(mu), 6)


def model_spec(model_id: str) -> ModelSpec:
    """Return what is known about a model.

    Raises:
        InputError: the model is unknown, or quantized already.
    """
    if model_id in MODELS:
        return MODELS[model_id]
    original = model_id.removesuffix(QUANTIZED_SUFFIX)
    if original != model_id and original in MODELS:
        raise InputError(
            f"{model_id} is quantized already, so none of its layers is left to measure; use {original}"
        )
    raise InputError(f"no model named {model_id!r}; choose one of: {', '.join(MODELS)}")
