"""Runs a calibration task: draws an image and packs its trajectory into a shard."""

import logging
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from msgspec.structs import replace

from shared.kinds.calibration import CalibrationShard, CalibrationTask
from shared.layout.npz import Array
from shared.model_card import ModelCard, encode_model_card
from worker.engine.trajectory import Trajectory, denoise, to_numpy
from worker.families.family import Family
from worker.jobs.failures import is_metal_error

logger = logging.getLogger("bitfleet.worker")


def calibrate(task: CalibrationTask, family: Family, check: Callable[[str], None]) -> CalibrationShard:
    """Draw the task's image and return everything that a collector needs to write its samples."""
    family.hold("text_encoder", "transformer")
    trajectory = denoise(
        family,
        task.prompt,
        seed=task.seed,
        num_steps=task.run.num_steps,
        cfg_weight=task.run.cfg_weight,
        latent_size=task.run.latent_size,
        check=check,
    )
    check("decoding the preview")
    return CalibrationShard(
        x=_latents(trajectory, family.dtype),
        sigma=to_numpy(trajectory.sigmas),
        timestep=to_numpy(trajectory.timesteps[:-1].astype(mx.float32)),
        conditioning={name: to_numpy(array) for name, array in trajectory.conditioning.items()},
        preview_png=_bytes(_preview(task, family, trajectory)),
        model_json=_bytes(encode_model_card(model_card(task.run.model, family))),
    )


def model_card(model: str, family: Family) -> ModelCard:
    """Return what the producer must know about a model to enqueue its layers."""
    return ModelCard(
        model=model,
        fingerprint=family.fingerprint,
        parts=family.part_fingerprints(),
        parameters=count_parameters(family.transformer),
        layers=tuple(replace(layer, place=family.place(layer.path)) for layer in family.layers),
    )


def count_parameters(transformer: Any) -> int:
    """Count the trained numbers. Lookup tables, such as that of positions, do not count."""
    tables = {id(module.weight) for module in transformer.modules() if isinstance(module, nn.Embedding)}
    parameters: Any = tree_flatten(transformer.parameters())
    return sum(array.size for _, array in parameters if id(array) not in tables)


def _preview(task: CalibrationTask, family: Family, trajectory: Trajectory) -> bytes:
    """Return the image as PNG, or nothing after an error: the samples are worth keeping without it."""
    try:
        family.hold("vae")
        return family.decode(trajectory.x[-1])
    except Exception as error:
        if is_metal_error(error):
            raise
        logger.warning("%s has no preview, its samples are kept: %s", task.label, error)
        return b""


def _latents(trajectory: Trajectory, dtype: mx.Dtype) -> Array:
    # The transformer reads the latent in activation dtype, so float16 loses nothing. numpy has no bfloat16;
    # float16 would round a second time, so such latents stay in float32.
    latents = mx.concatenate(trajectory.x, axis=0)
    return to_numpy(latents.astype(mx.float16) if dtype == mx.float16 else latents)


def _bytes(data: bytes) -> Array:
    return np.frombuffer(data, dtype=np.uint8)
