"""The state of a run as plain data, which `producer status --json` prints as docs/status.schema.json says."""

import msgspec
from msgspec import Struct

FORMAT = 1
MAX_FAILURES = 10
"""So many failures people are told of at once."""


class PartStatus(Struct, frozen=True, kw_only=True):
    """All tasks of one kind that one request asks for."""

    title: str
    kind: str
    wanted: int
    queued: int
    running: int
    finished: int
    """Finished tasks that wait to be collected."""
    collected: int
    failed: int
    cancelled: int = 0
    tasks_per_hour: float | None = None
    """What the connected workers do if they do this part alone; None while nothing is known of it."""
    seconds_left: float | None = None
    """Until the queued and running tasks are done, all parts sharing the workers; None if unknown."""
    seconds_by_host: dict[str, float] = {}
    """Mean seconds a task, of the latest records."""

    @property
    def left(self) -> int:
        """Number of tasks that are still to be done."""
        return self.queued + self.running


class WorkerStatus(Struct, frozen=True, kw_only=True):
    """One connected worker process."""

    name: str
    """As in its log and in the history of its tasks."""
    host: str
    state: str
    """busy, idle, or what RQ says."""
    task: str | None = None
    step: str | None = None
    """How far its task is, in the worker's words."""
    task_seconds: float | None = None
    lease_seconds: float | None = None
    """Until its lease ends; None without a task."""
    tasks_done: int = 0
    tasks_per_hour: float | None = None
    """By the time that its tasks took."""
    failed: int = 0
    leases_lost: int = 0
    seconds_silent: float = 0.0
    versions: dict[str, str] = {}
    """Of bitfleet (its revision), its protocol, MLX, Python and the system."""


class StoreStatus(Struct, frozen=True, kw_only=True):
    """Where finished shards wait."""

    label: str
    used_bytes: int | None = None
    """Of the relay, which counts."""
    limit_bytes: int | None = None


class RunStatus(Struct, frozen=True, kw_only=True):
    """All that `producer status` knows."""

    format: int = FORMAT
    """Changes when a field changes its meaning or goes away."""
    at: str
    """UTC, ISO 8601."""
    folder: str
    run: str
    model: str
    redis: bool
    """Whether a Redis was asked. Without one, `queued`, `running`, `finished` and `failed` are 0."""
    parts: list[PartStatus]
    workers: list[WorkerStatus]
    store: StoreStatus | None = None
    queue_age_seconds: float | None = None
    """For how long the first waiting job has waited."""
    seconds_left: float | None = None
    """Until everything that is queued or running is done."""
    failures: list[str] = []
    notes: list[str] = []
    """What hinders the run, a line each."""

    @property
    def settled(self) -> bool:
        """Whether every task is collected, has failed or was cancelled."""
        return all(part.collected + part.failed + part.cancelled >= part.wanted for part in self.parts)


def to_json(status: RunStatus) -> str:
    """Return a status as JSON."""
    return msgspec.json.format(msgspec.json.encode(status), indent=2).decode()
