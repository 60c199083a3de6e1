"""What `worker start` was asked for, as it travels to the worker processes."""

import os
import secrets
from pathlib import Path

import msgspec
from msgspec import Struct
from platformdirs import user_cache_path

ENVIRONMENT_NAME = "BITFLEET_WORKER_OPTIONS"
"""The options travel in the environment: a process list shows arguments, passwords included."""


class WorkerOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One worker process's options; paths as text."""

    redis_url: str
    name: str | None = None
    """Of the worker in Redis; made up when the supervisor gave none."""
    store: str | None = None
    calib_dir: str | None = None
    checkpoint: str | None = None
    memory_limit: int | None = None
    """Bytes, of this process; None: its share of what the machine can spare."""
    workers_here: int = 1
    """Processes of this machine, which share its memory."""
    canary_tolerance: float | None = None
    hedge: bool = False
    """Take second copies of slow jobs when the queue is empty."""
    lease_seconds: int = 45
    beat_seconds: float = 10.0
    burst: bool = False
    """Leave when the queue is empty."""
    with_parent: bool = False
    """Leave, handing the job back, when the process that started us is gone."""
    log_level: str = "INFO"

    def to_environment(self) -> dict[str, str]:
        """This process's environment, with these options in it."""
        return {**os.environ, ENVIRONMENT_NAME: msgspec.json.encode(self).decode()}

    @classmethod
    def from_environment(cls) -> "WorkerOptions":
        """Read back; the variable is removed, so that no child of ours sees it."""
        return msgspec.json.decode(os.environ.pop(ENVIRONMENT_NAME), type=cls)


def cache_dir() -> Path:
    """Where models made here and fetched samples are kept."""
    return user_cache_path("bitfleet", appauthor=False)


def new_worker_name(host: str) -> str:
    """Unique for every process: a name that died must not be taken for one that lives."""
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in host)
    return f"{safe}-{os.getpid()}-{secrets.token_hex(3)}"
