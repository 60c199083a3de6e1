"""run.json: a run, and which of its images are wanted."""

import msgspec
from msgspec import Struct

from shared.runs import RunSettings


class RunFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was asked for with `enqueue-calibration`."""

    settings: RunSettings
    prompts: tuple[str, ...]
    """One an image."""
    store_id: str
    store: str | None
    """Its URL without a password; None for the Redis relay."""


def difference(old: RunFile, new: RunFile) -> str:
    """Names, old and new values of the settings in which two runs differ, for people."""
    before, after = msgspec.to_builtins(old.settings), msgspec.to_builtins(new.settings)
    names = [name for name in before if before[name] != after[name]]
    return ", ".join(
        "prompts" if name == "prompts_sha256" else f"{name} ({before[name]}, now {after[name]})"
        for name in names
    )
