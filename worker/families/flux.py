"""FLUX.1, by DiffusionKit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from shared.models import Part
from shared.runs import RunSettings
from worker.export.folder import ExportFolder
from worker.families.diffusionkit.loading import LoadedModel, load_model
from worker.families.diffusionkit.mmdit_family import MMDiTFamily
from worker.families.diffusionkit.random_model import flux_config, random_pipeline
from worker.families.diffusionkit.sd3_layout import mmdit_to_flux
from worker.families.family import Family


class Flux(MMDiTFamily):
    """One loaded FLUX.1."""

    def __init__(self, pipeline: Any, model: LoadedModel | None = None) -> None:
        super().__init__(pipeline, model, layout=mmdit_to_flux)


def load(settings: RunSettings, checkpoint: Path | None, parts: Sequence[Part]) -> Family:
    """See `Load`."""
    model = load_model(settings, checkpoint, parts)
    return Flux(model.pipeline, model)


def trial(*, full: bool) -> Family:
    """See `registry.trial_family`."""
    return Flux(random_pipeline(flux_config(full=full), mx.bfloat16))


def load_exported(
    settings: RunSettings, checkpoint: Path | None, parts: Sequence[Part], exported: ExportFolder
) -> Family:
    """See `LoadExported`."""
    model = load_model(settings, checkpoint, parts, exported)
    return Flux(model.pipeline, model)
