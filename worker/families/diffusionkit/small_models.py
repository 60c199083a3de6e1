"""The built-in models: sizes of their parts, and where their files lie."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from diffusionkit.mlx.config import MMDiTConfig, VAEDecoderConfig, VAEEncoderConfig

from shared.models import MODELS, Precision

WEIGHTS_FILE = "sd3_small.safetensors"
"""Transformer and VAE, as one SD3 checkpoint holds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallModel:
    """An SD3-shaped model at reduced sizes. Inputs of linear layers divide by 64, a common group size."""

    hidden_size: int
    num_heads: int
    depth: int
    max_latent_resolution: int
    clip_widths: tuple[int, int]
    """Of the two text encoders; their pooled outputs have the same widths."""
    clip_layers: int
    max_length: int
    """Tokens of a prompt, begin and end included; DiffusionKit sets as many zeros beside them for T5."""
    vae_channels: tuple[int, ...]
    vae_layers: int
    """Residual blocks a level of the encoder; the decoder has one more."""
    vae_groups: int = 8
    """Of its group normalisation; few, where channels are few, for a group of one forgets its brightness."""
    use_qk_norm: bool = False

    def mmdit_config(self, precision: Precision) -> MMDiTConfig:
        """Transformer sizes. `dtype` is that of the timestep embedding."""
        return MMDiTConfig(
            num_heads=self.num_heads,
            depth_multimodal=self.depth,
            hidden_size_override=self.hidden_size,
            max_latent_resolution=self.max_latent_resolution,
            pooled_text_embed_dim=sum(self.clip_widths),
            use_qk_norm=self.use_qk_norm,
            dtype=mx.float16 if precision == "float16" else mx.float32,
            float16_dtype=mx.float16,
            low_memory_mode=False,
        )

    def vae_encoder_config(self) -> VAEEncoderConfig:
        """Encoder sizes."""
        return VAEEncoderConfig(
            block_out_channels=self.vae_channels,
            layers_per_block=self.vae_layers,
            resnet_groups=self.vae_groups,
        )

    def vae_decoder_config(self) -> VAEDecoderConfig:
        """Decoder sizes."""
        return VAEDecoderConfig(
            block_out_channels=self.vae_channels,
            layers_per_block=self.vae_layers + 1,
            resnet_groups=self.vae_groups,
        )

    def clip_config(self, width: int) -> dict[str, Any]:
        """What `config.json` of a text encoder says."""
        return {
            "architectures": ["CLIPTextModelWithProjection"],
            "hidden_act": "quick_gelu",
            "hidden_size": width,
            "max_position_embeddings": self.max_length,
            "num_attention_heads": max(1, width // 32),
            "num_hidden_layers": self.clip_layers,
            "projection_dim": width,
        }


def _positions(model_id: str) -> int:
    """Latent pixels a side of the largest image that a built-in model draws."""
    return (MODELS[model_id].max_image_size or 0) // 8


TINY_SD3 = SmallModel(
    hidden_size=64,
    num_heads=2,
    depth=3,
    max_latent_resolution=_positions("tiny-sd3"),
    clip_widths=(64, 64),
    clip_layers=2,
    max_length=32,
    vae_channels=(32, 32, 64, 64),
    vae_layers=1,
)


DEMO = SmallModel(
    hidden_size=128,
    num_heads=4,
    depth=6,
    max_latent_resolution=_positions("demo"),
    clip_widths=(64, 64),
    clip_layers=3,
    # The longest prompt of the grammar has 14 words.
    max_length=16,
    vae_channels=(8, 16, 32, 64),
    vae_layers=1,
    vae_groups=1,
    use_qk_norm=True,
)


def demo_folder() -> Path:
    """Folder of the demo model, which is part of the package."""
    return Path(__file__).parent / "demo_model"


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A small model and the function that finds its folder, writing it where need be."""

    model: SmallModel
    folder: Callable[[], Path]
