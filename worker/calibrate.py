"""Running a calibration task: one image's trajectory, as a shard."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from shared.kinds.calibration import CalibrationShard, CalibrationTask
from shared.layout.npz import Array
from shared.model_card import ModelCard, encode_model_card
from worker.model.layers import linear_layers
from worker.model.models import LoadedModel
from worker.trajectory import Trajectory, decode_png, denoise, to_numpy


def calibrate(task: CalibrationTask, model: LoadedModel, check: Callable[[str], None]) -> CalibrationShard:
    """Draw the task's image and return everything that a collector needs to write its samples."""
    trajectory = denoise(
        model.pipeline,
        task.prompt,
        seed=task.seed,
        num_steps=task.run.num_steps,
        cfg_weight=task.run.cfg_weight,
        latent_size=task.run.latent_size,
        check=check,
    )
    check("decoding the preview")
    return CalibrationShard(
        x=_latents(trajectory, task.run.precision),
        sigma=to_numpy(trajectory.sigmas),
        timestep=to_numpy(trajectory.timesteps[:-1].astype(mx.float32)),
        conditioning=to_numpy(trajectory.conditioning),
        pooled_conditioning=to_numpy(trajectory.pooled_conditioning),
        preview_png=_bytes(decode_png(model.pipeline, trajectory.x[-1])),
        model_json=_bytes(encode_model_card(model_card(model))),
    )


def model_card(model: LoadedModel) -> ModelCard:
    """What the producer must know of a model to enqueue its layers."""
    mmdit = model.pipeline.mmdit
    parameters: Any = tree_flatten(mmdit.parameters())
    return ModelCard(
        model=model.spec.id,
        fingerprint=model.fingerprint,
        parameters=sum(array.size for _, array in parameters),
        layers=tuple(linear_layers(mmdit)),
    )


def _latents(trajectory: Trajectory, precision: str) -> Array:
    # What the transformer sees is the latent in activation dtype: for float16 nothing is lost by it.
    latents = mx.concatenate(trajectory.x, axis=0)
    return to_numpy(latents.astype(mx.float16) if precision == "float16" else latents)


def _bytes(data: bytes) -> Array:
    return np.frombuffer(data, dtype=np.uint8)
