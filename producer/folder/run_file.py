"""run.json: a run, with the images that are wanted."""

import msgspec
from msgspec import Struct

from shared.choices import SampleFiles
from shared.runs import RunSettings


class RunFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything that `enqueue-calibration` asked for."""

    settings: RunSettings
    prompts: tuple[str, ...]
    """One prompt per image."""
    store_id: str
    store: str | None
    """The store's URL without passwords; None for the relay."""
    samples: SampleFiles = "all"
    """A habit of the folder, for images that are yet to be collected; the run's id knows nothing of it."""


def sample_files(old: RunFile | None, asked: SampleFiles | None) -> SampleFiles:
    """Return which steps get a sample file: as asked for, else as before in this folder, else all."""
    return asked or (old.samples if old else "all")


def difference(old: RunFile, new: RunFile) -> str:
    """Return, for a message, the settings in which two runs differ, with old and new values."""
    before, after = msgspec.to_builtins(old.settings), msgspec.to_builtins(new.settings)
    names = [name for name in before if before[name] != after[name]]
    return ", ".join(
        "prompts" if name == "prompts_sha256" else f"{name} ({before[name]}, now {after[name]})"
        for name in names
    )
