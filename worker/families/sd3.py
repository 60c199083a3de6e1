"""SD3 and SD3.5, by DiffusionKit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from shared.models import Part
from shared.runs import RunSettings
from worker.export.folder import ExportFolder
from worker.families.diffusionkit.loading import LoadedModel, load_model
from worker.families.diffusionkit.mmdit_family import MMDiTFamily
from worker.families.diffusionkit.random_model import random_pipeline, sd3_config
from worker.families.diffusionkit.sd3_layout import mmdit_to_sd3
from worker.families.family import Family


class Sd3(MMDiTFamily):
    """One loaded SD3."""

    def __init__(self, pipeline: Any, model: LoadedModel | None = None) -> None:
        super().__init__(pipeline, model, layout=mmdit_to_sd3)


def load(settings: RunSettings, checkpoint: Path | None, parts: Sequence[Part]) -> Family:
    """See `Load`."""
    model = load_model(settings, checkpoint, parts)
    return Sd3(model.pipeline, model)


def trial(*, full: bool) -> Family:
    """See `registry.trial_family`."""
    return Sd3(random_pipeline(sd3_config(full=full), mx.float16))


def load_exported(
    settings: RunSettings, checkpoint: Path | None, parts: Sequence[Part], exported: ExportFolder
) -> Family:
    """See `LoadExported`."""
    model = load_model(settings, checkpoint, parts, exported)
    return Sd3(model.pipeline, model)
