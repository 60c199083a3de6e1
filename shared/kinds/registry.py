"""All kinds of tasks. A new kind is one module in each of shared, worker and producer, and a name here."""

from functools import reduce
from importlib import import_module
from operator import or_
from typing import TYPE_CHECKING

import msgspec

from shared.decoding import decode, decode_or_none
from shared.errors import TaskRefusedError, UnknownKindError
from shared.kinds.kind import Kind, Task

NAMES = ("calibration", "sensitivity", "sketch", "weights", "levels", "confirm", "verification")

KINDS: dict[str, Kind] = {name: import_module(f"shared.kinds.{name}").KIND for name in NAMES}

_BY_TASK = {kind.task: kind for kind in KINDS.values()}

if TYPE_CHECKING:
    AnyTask = Task
else:
    AnyTask = reduce(or_, _BY_TASK)
    """The union of all task classes, for decoding."""

_decoder: msgspec.json.Decoder[Task] = msgspec.json.Decoder(AnyTask)


class _AnyRevisionsTask(msgspec.Struct):
    """The one field that tasks of all revisions share: the name of their kind."""

    type: str


_any_revision = msgspec.json.Decoder(_AnyRevisionsTask)


def kind_of(task: Task) -> Kind:
    """Return the kind of a task."""
    return _BY_TASK[type(task)]


def kind_name(job_id: str) -> str:
    """Return the name of the kind that a job's id begins with; "unknown" if this revision has none such."""
    prefix = job_id.partition("-")[0]
    return next((kind.name for kind in KINDS.values() if kind.prefix == prefix), "unknown")


def encode_task(task: Task) -> str:
    """Return a task as JSON text, which becomes an argument of its job."""
    return msgspec.json.encode(task).decode()


def decode_task(text: str | bytes) -> Task:
    """Return the task that `encode_task` wrote.

    Raises:
        UnknownKindError: this revision does not know the kind.
        TaskRefusedError: this is no task, or a field is outside its limits.
    """
    try:
        return decode(_decoder, text, TaskRefusedError, "not a task this revision knows")
    except TaskRefusedError:
        any_task = decode_or_none(_any_revision, text)
        if any_task is not None and any_task.type not in KINDS:
            raise UnknownKindError(f"this revision knows no tasks of kind {any_task.type[:80]!r}") from None
        raise
