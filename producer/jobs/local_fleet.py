"""A fleet of one machine: a Redis of our own, or the one that was named, and workers beside it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from redis import Redis

from producer.jobs.redis_server import RedisServer
from shared.errors import BitfleetError
from shared.jobs.connection import connect
from shared.jobs.task_queue import TaskQueue, queue_name

# A path: the producer imports nothing of the worker's, and a user's `worker.py` must not be run instead.
LAUNCHER = Path(__file__).resolve().parents[2] / "worker" / "launch.py"
GRACE_SECONDS = 60.0


class WorkersLeftError(BitfleetError):
    """The workers of this machine left before the work was done; their own words are above."""


@contextmanager
def local_redis(redis_url: str | None, state_dir: Path, store_id: str) -> Iterator[tuple[str, Redis]]:
    """Yield URL and client of the Redis at `redis_url`, or of an embedded one with its AOF in `state_dir`."""
    if redis_url:
        yield redis_url, connect(redis_url)
        return
    with RedisServer(state_dir) as server:
        connection = connect(server.url)
        # Nobody else uses this Redis and our workers are not up yet: what it takes for running is not.
        queue = TaskQueue(queue_name(store_id), connection)
        connection.delete(queue.key, queue.started_job_registry.key)
        yield server.url, connection


class LocalWorkers:
    """`worker start` as a child process; a context manager that never leaves it behind."""

    def __init__(self, redis_url: str, arguments: list[str]) -> None:
        self._url = redis_url
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.now = False
        """Leave at once, handing jobs back, instead of finishing them."""

    def __enter__(self) -> "LocalWorkers":
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(LAUNCHER), "worker.cli", "start", "--with-parent", *self._arguments],
            env={**os.environ, "REDIS_URL": self._url},
            stdin=subprocess.DEVNULL,
            # A terminal's Ctrl-C reaches only us; we hand it on once the queue is in order.
            start_new_session=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        if self.now or kind is not None:
            time.sleep(0.2)
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def check(self) -> None:
        """Raise WorkersLeftError when they are gone."""
        if self._process is not None and (code := self._process.poll()) is not None:
            raise WorkersLeftError(f"the workers left with exit code {code}; see what they said above")
