"""A job in RQ that holds one task and can run only this project's functions.

RQ would call any importable name that a job contains, and callbacks and webhooks even when a job is only
read. This class prevents that.
"""

import zlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, ClassVar

from redis.exceptions import ResponseError
from rq.exceptions import NoSuchJobError
from rq.job import Job

from shared.errors import TaskRefusedError, UnknownKindError
from shared.kinds.kind import Task
from shared.kinds.registry import KINDS, decode_task, kind_of
from shared.printable import printable

JOB_TIMEOUT = int(timedelta(hours=12).total_seconds())
RESULT_TTL = int(timedelta(days=7).total_seconds())
FAILURE_TTL = int(timedelta(days=30).total_seconds())

MAX_DATA_BYTES = 256 * 1024
MAX_TEXT = 300
_SAFE_FIELDS = {
    "created_at",
    "data",
    "description",
    "ended_at",
    "enqueued_at",
    "last_heartbeat",
    "origin",
    "started_at",
    "status",
    "timeout",
    "worker_name",
}
COPY_FIELD = "bitfleet_copy"
"""In a job's hash, beside what RQ writes: who copies it. It goes with the job."""


class TaskJob(Job):
    """A job that holds one task. Only harmless fields are taken from Redis."""

    functions: ClassVar[Mapping[str, Callable[[Task], dict[str, Any]]]] = {}
    """Functions by the name of their kind. Only worker processes fill this table."""

    refusal: str | None = None
    copy_claim = ""
    """Who copies it, see worker.jobs.copy_claim."""

    def refresh(self) -> None:
        """Read the job again. A key that is no hash counts as no job."""
        try:
            super().refresh()  # type: ignore[no-untyped-call]
        except ResponseError as error:
            raise NoSuchJobError(f"{self.key} is no job: {error}") from None

    def restore(self, raw_data: Any) -> None:
        """Take over the known fields and ignore all others, such as callbacks and webhooks."""
        fields = {_text(key): value for key, value in dict(raw_data).items()}
        dropped = sorted(name for name in fields.keys() - _SAFE_FIELDS if fields[name] and "call" in name)
        if dropped or fields.get("webhooks"):
            self.refusal = f"it carries {', '.join(dropped) or 'webhooks'}"
        self.copy_claim = _text(fields.get(COPY_FIELD, ""))
        clean: dict[bytes, Any] = {
            name.encode(): value for name, value in fields.items() if name in _SAFE_FIELDS
        }
        try:
            clean[b"data"] = _inflate(clean.get(b"data", b""))
            super().restore(clean)
        except Exception as error:  # noqa: BLE001 - no content of a hash may end a worker
            self.refusal = f"it can't be read: {str(error)[:MAX_TEXT]}"
            super().restore({b"data": b"[]"})
        self._set_limits()

    def _set_limits(self) -> None:
        if self.timeout is None or not 0 < self.timeout <= JOB_TIMEOUT:
            self.timeout = JOB_TIMEOUT
        # Ours to decide: see worker/jobs/verdict.py.
        self.retries_left = None
        self.result_ttl, self.failure_ttl = RESULT_TTL, FAILURE_TTL
        # Both are logged; control characters could change the terminal.
        self.description = _printable(self.description)
        self.worker_name = _printable(self.worker_name)

    @property
    def task(self) -> Task:
        """The validated task.

        Raises:
            TaskRefusedError: this is not one of our jobs.
            UnknownKindError: a newer revision enqueued a kind that this one does not know.
        """
        if self.refusal:
            raise TaskRefusedError(f"job {self.id} is refused: {self.refusal}")
        try:
            name, _, args, kwargs = self.serializer.loads(self.data)
        except Exception as error:  # noqa: BLE001
            raise TaskRefusedError(f"job {self.id} is refused: its data is no JSON ({error})") from None
        if kwargs or not isinstance(args, list) or len(args) not in (1, 2):
            raise TaskRefusedError(f"job {self.id} is refused: it calls {str(name)[:80]!r}")
        if not all(isinstance(argument, str) for argument in args):
            raise TaskRefusedError(f"job {self.id} is refused: its argument is no text")
        try:
            task = decode_task(args[0])
        except UnknownKindError as error:
            needed = f"; it needs bitfleet {_printable(args[1][:40])}" if len(args) == 2 else ""
            raise UnknownKindError(f"{error}{needed}") from None
        except TaskRefusedError as error:
            called = "" if name in KINDS else f"it calls {str(name)[:80]!r}, and is "
            raise TaskRefusedError(f"job {self.id} is refused: {called}{error}") from None
        if task.id != self.id or name != kind_of(task).name:
            raise TaskRefusedError(f"job {self.id} is refused: its task is {task.id}")
        return task

    @property
    def func(self) -> Callable[..., Any]:
        """Refused: functions are never imported by name."""
        raise TaskRefusedError(f"job {self.id}: functions are called through the table only")

    def _deserialize_data(self) -> None:
        """Validate the task first: RQ reads the call for its log before it runs anything."""
        _ = self.task
        super()._deserialize_data()  # type: ignore[no-untyped-call]

    def _execute(self) -> dict[str, Any]:
        task = self.task
        return self.functions[kind_of(task).name](task)


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _printable(text: str | None) -> str | None:
    return printable(text, MAX_TEXT) if text else text


def _inflate(data: bytes) -> bytes:
    """Unpack RQ's zlib data, up to a limit: a few bytes must not become gigabytes."""
    if not isinstance(data, bytes) or not data:
        raise ValueError("no data")
    decompressor = zlib.decompressobj()
    plain = decompressor.decompress(data, MAX_DATA_BYTES + 1)
    if len(plain) > MAX_DATA_BYTES:
        raise ValueError(f"more than {MAX_DATA_BYTES} bytes of data")
    if not decompressor.eof:
        raise ValueError("its data is cut short")
    return plain
