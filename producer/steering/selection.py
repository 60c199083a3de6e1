"""Which tasks of a folder somebody means: parts and tasks by name, or by patterns of names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate

from producer.kinds.part import Part
from shared.errors import InputError
from shared.kinds.kind import Task
from shared.printable import printable


@dataclass(frozen=True, slots=True)
class Selected:
    """The tasks of one part that are meant."""

    part: Part
    tasks: tuple[Task, ...]


def select(parts: Sequence[Part], patterns: Sequence[str]) -> list[Selected]:
    """Return what is meant by `patterns`; everything, if there are none.

    A pattern is compared with a part's title ("sensitivity 0123456789ab") and each word of it, and with a
    task's id and label ("image 3"). `*` stands for any text, `?` for one letter.

    Raises:
        InputError: a pattern fits nothing.
    """
    if not patterns:
        return [Selected(part, tuple(part.tasks())) for part in parts]
    found: dict[int, dict[str, Task]] = {}
    for pattern in patterns:
        fits = re.compile(translate(pattern)).fullmatch
        hits = 0
        for place, part in enumerate(parts):
            whole = any(map(fits, (part.title, *part.title.split())))
            tasks = {task.id: task for task in part.tasks() if whole or fits(task.id) or fits(task.label)}
            found.setdefault(place, {}).update(tasks)
            hits += len(tasks)
        if not hits:
            raise InputError(_nothing(pattern, parts))
    return [Selected(parts[place], tuple(tasks.values())) for place, tasks in found.items() if tasks]


def _nothing(pattern: str, parts: Sequence[Part]) -> str:
    titles = ", ".join(repr(part.title) for part in parts)
    example = next((task for part in reversed(parts) for task in part.tasks()), None)
    named = f", a task is named like {example.label!r} or {example.id!r}" if example else ""
    shown = printable(pattern, 80)
    return f"nothing here is named {shown!r}: the parts are {titles}{named}, and * fits any text"
