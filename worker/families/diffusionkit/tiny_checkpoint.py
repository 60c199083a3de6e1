"""`tiny-sd3`: an SD3-shaped checkpoint with seeded random weights, the same bytes on every machine."""

import json
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from diffusionkit.mlx.clip import CLIPTextModel
from diffusionkit.mlx.config import CLIPTextModelConfig
from diffusionkit.mlx.mmdit import MMDiT
from diffusionkit.mlx.vae import VAEDecoder, VAEEncoder
from platformdirs import user_cache_path
from safetensors.numpy import save_file

from shared.errors import ModelUnavailableError
from worker.families.diffusionkit import sd3_layout
from worker.families.diffusionkit.sd3_layout import Array, Weights, empty_parameters
from worker.families.diffusionkit.small_models import TINY_SD3, WEIGHTS_FILE, SmallModel
from worker.families.diffusionkit.vocabulary import byte_pair_merges, vocabulary

VERSION = 1
"""Raised whenever the bytes written change; old folders in the cache are left alone."""


def tiny_sd3_folder() -> Path:
    """Return the folder of the tiny checkpoint, written on first use.

    Raises:
        ModelUnavailableError: the cache folder can't be written.
    """
    folder = user_cache_path("bitfleet") / f"tiny-sd3-v{VERSION}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(folder)
    except OSError as error:
        raise ModelUnavailableError(f"tiny-sd3 can't be written to {folder}: {error}") from None
    return folder


def _write_whole(folder: Path) -> None:
    """Another process may do the same: whoever renames first wins, and both wrote the same bytes."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_random_checkpoint(temporary, TINY_SD3)
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_random_checkpoint(folder: Path, small: SmallModel, seed: int = 0) -> None:
    """Write all files that DiffusionKit downloads for an SD3 model, with random weights."""
    transformer = sd3_layout.mmdit_to_sd3(empty_parameters(MMDiT(small.mmdit_config("float32"))))
    encoder = VAEEncoder(**vars(small.vae_encoder_config()))
    decoder = VAEDecoder(**vars(small.vae_decoder_config()))
    weights = {
        **transformer,
        **sd3_layout.vae_to_sd3(empty_parameters(encoder), sd3_layout.VAE_ENCODER_PREFIX),
        **sd3_layout.vae_to_sd3(empty_parameters(decoder), sd3_layout.VAE_DECODER_PREFIX),
    }
    write_weights(folder / WEIGHTS_FILE, random_like(weights, seed))
    # DiffusionKit resolves this one, and never reads it.
    write_json(folder / "config.json", {})
    write_tokenizers(folder)
    for index, (part, width) in enumerate(zip(("clip_l", "clip_g"), small.clip_widths, strict=True)):
        shapes = sd3_layout.clip_to_hf(empty_parameters(new_clip(small, width)))
        write_clip(folder / part, small, width, random_like(shapes, seed + 1 + index))


def new_clip(small: SmallModel, width: int) -> CLIPTextModel:
    """A text encoder of these sizes, as `model_io.load_text_encoder` would make it from its config.json."""
    config = small.clip_config(width)
    return CLIPTextModel(
        CLIPTextModelConfig(
            num_layers=config["num_hidden_layers"],
            model_dims=width,
            num_heads=config["num_attention_heads"],
            max_length=config["max_position_embeddings"],
            vocab_size=len(vocabulary(byte_pair_merges())),
            projection_dim=config["projection_dim"],
            hidden_act=config["hidden_act"],
        )
    )


def write_clip(folder: Path, small: SmallModel, width: int, weights: Weights) -> None:
    """Write `config.json` and weights of one text encoder."""
    vocab_size = len(vocabulary(byte_pair_merges()))
    write_json(folder / "config.json", {**small.clip_config(width), "vocab_size": vocab_size})
    write_weights(folder / "model.fp16.safetensors", weights)


def write_tokenizers(folder: Path) -> None:
    """Write vocabulary and merges, the same for both text encoders."""
    merges = byte_pair_merges()
    for part in ("tokenizer_l", "tokenizer_g"):
        write_json(folder / part / "vocab.json", vocabulary(merges))
        # DiffusionKit skips the first line, which names the format's version.
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        _write(folder / part / "merges.txt", "\n".join(lines).encode() + b"\n")


def write_weights(path: Path, weights: Weights) -> None:
    """Write half precision safetensors; numpy's writer orders tensors: equal weights, equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(w.astype(np.float16)) for name, w in weights.items()}, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with sorted keys."""
    _write(path, json.dumps(value, sort_keys=True, indent=0).encode() + b"\n")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def random_like(shapes: Mapping[str, Array], seed: int) -> Weights:
    """Random weights that keep activations near unit variance, each tensor from its own stream."""
    return {name: _random_tensor(name, zeros.shape, seed) for name, zeros in shapes.items()}


def _random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Array:
    # Uniform, not normal: a generator's normals pass through exp and log, which differ between platforms.
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    uniform = (rng.random(shape) * 2 - 1) * np.sqrt(3.0)
    if len(shape) == 1:
        return _random_vector(name, uniform)
    table = "embedding.weight" in name or name.endswith("pos_embed")
    scaled: Array = uniform * (0.5 if table else 1 / np.sqrt(np.prod(shape[1:])))
    return scaled


def _random_vector(name: str, uniform: Array) -> Array:
    if name.endswith("qkv.bias"):
        third = len(uniform) // 3
        uniform[third : 2 * third] = 0.0
    mean = 1.0 if "norm" in name and not name.endswith("bias") else 0.0
    # Gates (adaLN) far from zero, so that each layer shows in the output.
    scaled: Array = mean + (0.5 if "adaLN" in name or "_mod" in name else 0.1) * uniform
    return scaled
