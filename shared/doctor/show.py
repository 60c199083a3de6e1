"""How checks are shown: in a line each, or as JSON."""

import platform
from collections.abc import Iterable
from datetime import UTC, datetime

import click
import msgspec
from msgspec import Struct

from shared import __version__
from shared.cli import is_quiet
from shared.doctor.check import Check
from shared.printable import printable

MARKS = {"ok": "ok     ", "warning": "WARNING", "failed": "FAILED ", "skipped": "skipped"}


class Examination(Struct, frozen=True, kw_only=True):
    """What `--json` prints."""

    bitfleet: str
    machine: str
    at: str
    """UTC, ISO 8601."""
    full: bool
    checks: list[Check]


def line_of(check: Check) -> str:
    """Return a check as one line of text."""
    cure = f"; {check.cure}" if check.cure else ""
    return f"{MARKS[check.outcome]}  {check.name}: {check.found}{cure}"


def to_json(checks: list[Check], *, full: bool) -> str:
    """Return the whole examination as JSON, with every figure."""
    examination = Examination(
        bitfleet=__version__,
        machine=f"{platform.system()} {platform.release()} {platform.machine()}",
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        full=full,
        checks=checks,
    )
    return msgspec.json.format(msgspec.json.encode(examination), indent=2).decode()


def show(checks: Iterable[Check], *, as_json: bool, full: bool = False) -> int:
    """Print checks as they come, or all as JSON; return the exit code: 2 if one has failed.

    With --quiet only warnings and failures are printed as they come.
    """
    seen = []
    for check in checks:
        seen.append(check)
        if not as_json and (not is_quiet() or check.outcome in ("warning", "failed")):
            click.echo(printable(line_of(check)))
    if as_json:
        click.echo(to_json(seen, full=full))
    failed = sum(check.outcome == "failed" for check in seen)
    if failed:
        click.echo(f"{failed} of {len(seen)} checks failed", err=True)
    return 2 if failed else 0
