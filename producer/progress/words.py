"""Words for people: durations, rates and numbers in a few letters, and the command that undoes a cancel."""

import shlex
from collections.abc import Sequence

from shared.printable import printable


def duration(seconds: float | None) -> str:
    """Return a duration for people: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`; a dash if it is unknown."""
    if seconds is None:
        return "-"
    whole = round(max(0.0, seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def short(seconds: float | None) -> str:
    """Return a duration for a column of a table: `45s`, `12m`, `3h20m`, `2d4h`."""
    words = duration(seconds)
    for word, letter in ((" min", "m"), (" s", "s"), (" h", "h"), (" d", "d")):
        words = words.replace(word, letter)
    return words.replace(" ", "")


def rate(tasks_per_hour: float | None) -> str:
    """Return a rate with about two digits; a dash if it is unknown."""
    if tasks_per_hour is None:
        return "-"
    return f"{tasks_per_hour:.1f}" if tasks_per_hour < 10 else f"{tasks_per_hour:,.0f}"


def retry_hint(names: Sequence[str]) -> str:
    """Return how cancelled tasks are asked for again; without names, all of a folder."""
    words = [printable(name, 200) for name in names]
    return f"`producer retry {shlex.join(words) if words else '--all'}` asks for them again"


def counted(count: int, thing: str) -> str:
    """Return a number with its noun: `1 task`, `2,000 tasks`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
