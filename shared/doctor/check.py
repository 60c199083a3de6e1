"""A check: what was looked at, what was found, and what mends it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from msgspec import Struct

Outcome = Literal["ok", "warning", "failed", "skipped"]


class Check(Struct, frozen=True, kw_only=True):
    """The outcome of one check, in a line."""

    name: str
    outcome: Outcome
    found: str
    cure: str = ""
    """What to do about it; empty where nothing needs to be done."""
    figures: dict[str, float] = {}
    """What was measured, to compare machines by: relative differences, bytes or seconds."""


CheckFunction = Callable[[], Iterable[Check]]


def ok(name: str, found: str, **figures: float) -> Check:
    """Return a check that passed."""
    return Check(name=name, outcome="ok", found=found, figures=figures)


def run_checks(functions: Iterable[tuple[str, CheckFunction]]) -> Iterator[Check]:
    """Yield the checks of each function. One that raises has failed; the others go on.

    Args:
        functions: each with the name that its failure is reported under.
    """
    for name, function in functions:
        try:
            yield from function()
        except Exception as error:  # noqa: BLE001
            # Whatever a broken machine raises is what the doctor is asked for.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            yield Check(
                name=name,
                outcome="failed",
                found=f"{type(error).__name__}: {lines[0][:300]}",
                cure="send the output of this command with --json with a report of this",
            )
