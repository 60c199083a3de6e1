"""Calibration shards as a worker would leave them, drawn with numpy: no model runs."""

import numpy as np

from shared.kinds.calibration import CalibrationShard
from shared.model_card import LayerInfo, ModelCard, encode_model_card
from tests.tasks import SETTINGS

CARD = ModelCard(
    model=SETTINGS.model,
    fingerprint="f" * 64,
    parameters=1000,
    layers=(LayerInfo(path="final_layer.linear", shape=(64, 64)),),
)


def calibration_shard(image_index: int = 0, steps: int = SETTINGS.num_steps) -> CalibrationShard:
    """One image's, of tests.tasks.SETTINGS."""
    rng = np.random.default_rng(image_index)
    height, width = SETTINGS.latent_size
    return CalibrationShard(
        x=rng.normal(size=(steps + 1, height, width, 16)).astype(np.float32),
        sigma=np.linspace(1, 0, steps + 1, dtype=np.float32),
        timestep=np.linspace(1000, 1, steps, dtype=np.float32),
        conditioning={
            "conditioning": rng.normal(size=(2, 5, 8)).astype(np.float32),
            "pooled_conditioning": rng.normal(size=(2, 6)).astype(np.float32),
        },
        preview_png=np.frombuffer(b"\x89PNG" + bytes(20), dtype=np.uint8),
        model_json=np.frombuffer(encode_model_card(CARD), dtype=np.uint8),
    )
