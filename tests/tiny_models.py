"""Tiny models under the ids of the public ones, in their publishers' layouts, in a Hugging Face cache.

DiffusionKit's tables say how large each model is; `tiny_tables` says otherwise. All else is the product's.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import save_file

from tests.tiny_flux import TINY_FLUX
from worker.families.diffusionkit import files as model_files
from worker.families.diffusionkit import sd3_layout
from worker.families.diffusionkit.quiet_imports import quiet_imports
from worker.families.diffusionkit.sd3_layout import Weights, empty_parameters
from worker.families.diffusionkit.small_models import TINY_SD3
from worker.families.diffusionkit.tiny_checkpoint import new_clip, random_like, write_clip, write_tokenizers

with quiet_imports():
    import diffusionkit.mlx as diffusionkit
    from diffusionkit.mlx import model_io
    from diffusionkit.mlx.config import MMDiTConfig
    from diffusionkit.mlx.mmdit import MMDiT
    from diffusionkit.mlx.t5 import SD3T5Encoder
    from diffusionkit.mlx.vae import VAEDecoder

SD3 = "argmaxinc/mlx-stable-diffusion-3-medium"
SD35 = "argmaxinc/mlx-stable-diffusion-3.5-large"
SCHNELL = "argmaxinc/mlx-FLUX.1-schnell"
DEV = "argmaxinc/mlx-FLUX.1-dev"
T5 = "google/t5-v1_1-xxl"

T5_TOKENS = 24
SENTENCES = [
    "a red circle",
    "a small blue square on a grey background",
    "a green triangle above a yellow one",
]

# DiffusionKit runs SD3.5-large with its timestep in bfloat16, and FLUX wholly in it.
_SD35 = dataclasses.replace(
    dataclasses.replace(TINY_SD3, use_qk_norm=True).mmdit_config("float16"), dtype=mx.bfloat16
)
_SCHNELL = dataclasses.replace(
    TINY_FLUX, dtype=mx.bfloat16, token_level_text_embed_dim=4096, pooled_text_embed_dim=64
)
_DEV = dataclasses.replace(_SCHNELL, guidance_embed=True)
CONFIGS: dict[str, MMDiTConfig] = {
    SD3: TINY_SD3.mmdit_config("float16"),
    SD35: _SD35,
    SCHNELL: _SCHNELL,
    DEV: _DEV,
}


@contextmanager
def tiny_tables() -> Iterator[None]:
    """DiffusionKit takes the public ids for tiny models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_io, "_CONFIG", model_io._CONFIG | CONFIGS)
        patch.setattr(model_io, "FLUX_SCHNELL", _SCHNELL)
        patch.setattr(model_files, "FLUX_DEV", _DEV)
        patch.setattr(model_io, "VAEDecoderConfig", TINY_SD3.vae_decoder_config)
        patch.setattr(diffusionkit, "T5_MAX_LENGTH", dict.fromkeys(CONFIGS, T5_TOKENS))
        yield


def write_cache(home: Path) -> None:
    """Write all files that the models of `CONFIGS` download, as a Hugging Face home holds them."""
    vae = sd3_layout.vae_to_sd3(empty_parameters(VAEDecoder(**vars(TINY_SD3.vae_decoder_config()))), "")
    for model_id, config in CONFIGS.items():
        folder = repository(home, model_id)
        file = model_io._MMDIT[model_id][model_id]
        prefix = model_io._PREFIX[model_id]["vae_decoder"]
        decoder = random_like({prefix + name: weight for name, weight in vae.items()}, seed=1)
        transformer = transformer_weights(model_id, config)
        if model_io._MMDIT[model_id]["vae"] == file:
            save(folder / file, {**transformer, **decoder})
        else:
            save(folder / file, transformer)
            save(folder / model_io._MMDIT[model_id]["vae"], decoder)
        (folder / "config.json").write_text("{}")
    text = repository(home, "argmaxinc/stable-diffusion")
    for index, part in enumerate(("clip_l", "clip_g")):
        width = TINY_SD3.clip_widths[index]
        shapes = sd3_layout.clip_to_hf(empty_parameters(new_clip(TINY_SD3, width)))
        write_clip(text / part, TINY_SD3, width, random_like(shapes, seed=2 + index))
    write_tokenizers(text)
    write_t5(text / "t5/t5xxl.safetensors", repository(home, T5))


def repository(home: Path, repo_id: str) -> Path:
    """The snapshot folder of a repository in a Hugging Face home, made where need be."""
    root = home / "hub" / f"models--{repo_id.replace('/', '--')}"
    revision = "0" * 40
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs/main").write_text(revision)
    snapshot = root / "snapshots" / revision
    snapshot.mkdir(parents=True, exist_ok=True)
    return snapshot


def transformer_weights(model_id: str, config: MMDiTConfig) -> Weights:
    """Random weights by their publisher's names; key biases are as large as the others."""
    empty = empty_parameters(MMDiT(config))
    flux = "FLUX" in model_id
    weights = random_like(sd3_layout.mmdit_to_flux(empty) if flux else sd3_layout.mmdit_to_sd3(empty), seed=0)
    rng = np.random.default_rng(4)
    for name, weight in weights.items():
        if name.endswith(("qkv.bias", "linear1.bias")):
            weights[name] = 0.1 * rng.standard_normal(weight.shape)
    return weights


def save(path: Path, weights: Mapping[str, Any]) -> None:
    """As float16 safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(w.astype(np.float16)) for name, w in weights.items()}, path)


def write_t5(weights_path: Path, folder: Path) -> None:
    """Write a T5 in Google's layout: encoder weights to one file; sizes and tokenizer into `folder`."""
    # Here, since many tests import this module, and few need T5.
    from transformers import T5Config

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(folder / "spiece"),
        vocab_size=48,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**special, "extra_ids": 0, "additional_special_tokens": None, "sp_model_kwargs": {}})
    )
    config = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        # The width that SD3 and FLUX take.
        "d_model": 4096,
        "d_ff": 32,
        "d_kv": 8,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "vocab_size": 128,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
        "layer_norm_epsilon": 1e-6,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    encoder = SD3T5Encoder(T5Config(**config), low_memory_mode=False)
    weights = random_like(sd3_layout.t5_to_google(empty_parameters(encoder)), seed=5)
    # One table under two names.
    save(weights_path, weights | {"shared.weight": weights["encoder.embed_tokens.weight"]})
