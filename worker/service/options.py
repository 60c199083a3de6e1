"""The options of `worker start`, as they travel to the worker processes."""

import os
import secrets
from pathlib import Path

import msgspec
from msgspec import Struct, field
from platformdirs import user_cache_path

ENVIRONMENT_NAME = "BITFLEET_WORKER_OPTIONS"
"""The options travel in the environment: a process list shows arguments, passwords included."""

MLX_ENVIRONMENT = {"MLX_ENABLE_TF32": "0"}
"""Without this, M5 and later chips multiply float32 with 10 bits of mantissa. MLX reads it when it is first
used. If the user has set it, that value stays; every record says which it was."""


class WorkerOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One worker process's options; paths as text."""

    redis_url: str
    name: str | None = None
    """The worker's name in Redis; drawn if the supervisor gave none."""
    store: str | None = None
    calib_dir: str | None = None
    checkpoint: str | None = None
    memory_limit: int | None = None
    """Bytes, of this process; None: its share of what the machine can spare."""
    workers_here: int = 1
    """Processes of this machine, which share its memory."""
    canary_tolerance: float | None = None
    hedge: bool = True
    """Take second copies of slow jobs when the queue is empty."""
    lease_seconds: int = 45
    beat_seconds: float = 10.0
    burst: bool = False
    """Exit when the queue is empty."""
    with_parent: bool = False
    """Exit, and hand the job back, when the process that started this one is gone."""
    alone: bool = False
    """Exit when this machine can't do a task: no other machine is there to do it."""
    start_id: str = field(default_factory=lambda: secrets.token_hex(6))
    """Of the `worker start`: its processes, and those that replace them, know what the others set aside."""
    log_level: str = "INFO"
    log_json: bool = False
    """Log one JSON object a line."""

    def to_environment(self) -> dict[str, str]:
        """This process's environment, with these options in it."""
        return {**MLX_ENVIRONMENT, **os.environ, ENVIRONMENT_NAME: msgspec.json.encode(self).decode()}

    @classmethod
    def from_environment(cls) -> "WorkerOptions":
        """Read back; the variable is removed, so that no child of ours sees it."""
        return msgspec.json.decode(os.environ.pop(ENVIRONMENT_NAME), type=cls)


def cache_dir() -> Path:
    """Return the folder for models made here and for fetched samples."""
    return user_cache_path("bitfleet", appauthor=False)


def new_worker_name(host: str) -> str:
    """Return a name that no other process has: a dead worker must not be taken for a living one."""
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in host)
    return f"{safe}-{os.getpid()}-{secrets.token_hex(3)}"
