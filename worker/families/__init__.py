"""Families of models: one file each, and one line in `families`."""

from importlib import import_module
from pathlib import Path

from shared.errors import InputError
from shared.runs import RunSettings
from worker.families.family import ALL_PARTS, Family, Part

FAMILIES = {
    "sd3": "worker.families.sd3",
    "flux": "worker.families.flux",
}
"""Module of each family. It has a function `load`, and its library is imported only when it is asked for."""


def load_family(
    name: str, settings: RunSettings, checkpoint: Path | None = None, parts: frozenset[Part] = ALL_PARTS
) -> Family:
    """Load a run's model; see `Load` for what is raised.

    Raises:
        InputError: no such family.
    """
    if name not in FAMILIES:
        raise InputError(f"no family of models named {name!r}; choose one of: {', '.join(FAMILIES)}")
    family: Family = import_module(FAMILIES[name]).load(settings, checkpoint, parts)
    return family
