"""run.json: a run, with the images that are wanted."""

import msgspec
from msgspec import Struct

from shared.runs import RunSettings


class RunFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that `enqueue-calibration` asked for."""

    settings: RunSettings
    prompts: tuple[str, ...]
    """One prompt per image."""
    store_id: str
    store: str | None
    """The store's URL without passwords; None for the relay."""


def difference(old: RunFile, new: RunFile) -> str:
    """Return, for a message, the settings in which two runs differ, with old and new values."""
    before, after = msgspec.to_builtins(old.settings), msgspec.to_builtins(new.settings)
    names = [name for name in before if before[name] != after[name]]
    return ", ".join(
        "prompts" if name == "prompts_sha256" else f"{name} ({before[name]}, now {after[name]})"
        for name in names
    )
