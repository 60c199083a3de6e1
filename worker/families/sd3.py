"""SD3 and SD3.5, by DiffusionKit."""

from pathlib import Path
from typing import Any

from shared.runs import RunSettings
from worker.families.diffusionkit import MMDiTFamily
from worker.families.family import Family, Part
from worker.model.models import load_model
from worker.model.sd3_layout import mmdit_to_sd3


class Sd3(MMDiTFamily):
    """One loaded SD3."""

    def __init__(self, pipeline: Any, fingerprint: str = "") -> None:
        super().__init__(pipeline, fingerprint=fingerprint, layout=mmdit_to_sd3)


def load(settings: RunSettings, checkpoint: Path | None, parts: frozenset[Part]) -> Family:
    """See `Load`. DiffusionKit opens all parts; what nobody uses stays on disk, for its weights are lazy."""
    model = load_model(settings, checkpoint)
    return Sd3(model.pipeline, model.fingerprint)
