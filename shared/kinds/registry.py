"""All kinds of tasks. A new one is a module in each of shared, worker and producer, and a name here."""

from functools import reduce
from importlib import import_module
from operator import or_
from typing import TYPE_CHECKING

import msgspec

from shared.errors import TaskRefusedError, UnknownKindError
from shared.kinds.kind import Kind, Task

NAMES = ("calibration", "sensitivity", "sketch")

KINDS: dict[str, Kind] = {name: import_module(f"shared.kinds.{name}").KIND for name in NAMES}

_BY_TASK = {kind.task: kind for kind in KINDS.values()}

if TYPE_CHECKING:
    AnyTask = Task
else:
    AnyTask = reduce(or_, _BY_TASK)
    """The union of all tasks, as a type that msgspec decodes."""

_decoder: msgspec.json.Decoder[Task] = msgspec.json.Decoder(AnyTask)


def kind_of(task: Task) -> Kind:
    """The kind of a task."""
    return _BY_TASK[type(task)]


def encode_task(task: Task) -> str:
    """JSON text of a task: the one argument of its job."""
    return msgspec.json.encode(task).decode()


def decode_task(text: str | bytes) -> Task:
    """Read back a task.

    Raises:
        UnknownKindError: another revision's kind of task.
        TaskRefusedError: no task at all, or a field outside its limits.
    """
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        name = _kind_named_in(text)
        if name is not None and name not in KINDS:
            raise UnknownKindError(f"this revision knows no tasks of kind {name!r}") from None
        raise TaskRefusedError(f"not a task this revision knows: {error}") from None


class _Tagged(msgspec.Struct):
    """Any task of any revision."""

    type: str


def _kind_named_in(text: str | bytes) -> str | None:
    try:
        return msgspec.json.decode(text, type=_Tagged).type[:80]
    except (msgspec.DecodeError, UnicodeError):
        return None
