"""Writes the demo model as DiffusionKit downloads a model: original key names, half precision."""

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from training.painter import Painter
from training.render import Array
from training.vae import Autoencoder
from worker.families.diffusionkit import sd3_layout
from worker.families.diffusionkit.files import file_sha256
from worker.families.diffusionkit.small_models import DEMO, WEIGHTS_FILE
from worker.families.diffusionkit.tiny_checkpoint import (
    write_clip,
    write_json,
    write_tokenizers,
    write_weights,
)

TEXT_COLUMNS = 4096
"""DiffusionKit pads token embeddings to this width with zeros."""
MAX_BYTES = 12 * 1000 * 1000


def export(folder: Path, vae: Autoencoder, painter: Painter) -> None:
    """Write all files, and print the sha256 and size of each."""
    transformer = arrays(painter.mmdit)
    narrow = transformer["context_embedder.weight"]
    wide = np.zeros((narrow.shape[0], TEXT_COLUMNS), np.float32)
    wide[:, : narrow.shape[1]] = narrow
    transformer["context_embedder.weight"] = wide
    write_weights(
        folder / WEIGHTS_FILE,
        {
            **sd3_layout.mmdit_to_sd3(transformer),
            **sd3_layout.vae_to_sd3(arrays(vae.encoder), sd3_layout.VAE_ENCODER_PREFIX),
            **sd3_layout.vae_to_sd3(arrays(vae.decoder), sd3_layout.VAE_DECODER_PREFIX),
        },
    )
    for part, width in zip(("clip_l", "clip_g"), DEMO.clip_widths, strict=True):
        write_clip(folder / part, DEMO, width, sd3_layout.clip_to_hf(arrays(getattr(painter, part))))
    write_json(folder / "config.json", {})
    write_tokenizers(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        print(f"{file_sha256(path)}  {path.stat().st_size:>9}  {path.relative_to(folder)}")
    if (total := sum(path.stat().st_size for path in files)) > MAX_BYTES:
        raise SystemExit(f"{total} bytes are more than {MAX_BYTES}: make the model smaller")


def arrays(module: nn.Module) -> dict[str, Array]:
    """Parameters by dotted name."""
    parameters: list[tuple[str, mx.array]] = tree_flatten(module.parameters())
    return {name: np.array(value, dtype=np.float32) for name, value in parameters}
