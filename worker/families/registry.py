"""All families of models. A new one is a module with a function `load`, and a line here."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from shared.errors import InputError
from shared.models import PARTS, Part, model_spec
from shared.runs import RunSettings
from worker.export.folder import ExportFolder
from worker.families.family import Family

FAMILIES = {
    "sd3": "worker.families.sd3",
    "flux": "worker.families.flux",
}
"""Module of each family. Its library is imported only when the family is asked for."""


def load_family(
    settings: RunSettings, checkpoint: Path | None = None, parts: Sequence[Part] = PARTS
) -> Family:
    """Load a run's model, or parts of it; see `Load` for what else is raised.

    Raises:
        InputError: no such model, or no such family of models.
    """
    return load_family_named(model_spec(settings.model).family, settings, checkpoint, parts)


def load_family_named(
    name: str, settings: RunSettings, checkpoint: Path | None = None, parts: Sequence[Part] = PARTS
) -> Family:
    """Load a run's model as a model of this family.

    Raises:
        InputError: no such family of models.
    """
    if name not in FAMILIES:
        raise InputError(f"no family of models named {name!r}; choose one of: {', '.join(FAMILIES)}")
    family: Family = import_module(FAMILIES[name]).load(settings, checkpoint, parts)
    return family


def trial_family(name: str, *, full: bool) -> Family | None:
    """Return a small random model of a family, of the shape of its published ones; nothing is downloaded.

    With `full` it has their width, and one or two blocks of each sort. None for a family whose module has no
    function `trial`.
    """
    module = import_module(FAMILIES[name])
    if not hasattr(module, "trial"):
        return None
    family: Family = module.trial(full=full)
    return family


def load_exported_family(
    exported: ExportFolder, checkpoint: Path | None = None, parts: Sequence[Part] = PARTS
) -> Family:
    """Load the quantized model of an exported folder, or parts of it; see `LoadExported`."""
    settings = exported.config.bitfleet.run
    module = import_module(FAMILIES[model_spec(settings.model).family])
    family: Family = module.load_exported(settings, checkpoint, parts, exported)
    return family
