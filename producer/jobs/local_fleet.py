"""Everything on one machine: our own Redis, or a given one, and local workers."""

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

# A path, because the producer must not import worker, and must not run a `worker.py` of the user's.
LAUNCHER = Path(__file__).resolve().parents[2] / "worker" / "launch.py"
GRACE_SECONDS = 60.0


class WorkersLeftError(BitfleetError):
    """The local workers ended before the work was done. Their own messages say why."""


@contextmanager
def local_redis(redis_url: str | None, state_dir: Path, store_id: str) -> Iterator[tuple[str, Redis]]:
    """Yield the URL and a client of the given Redis, or of our own, which keeps its data in `state_dir`."""
    if redis_url:
        yield redis_url, connect(redis_url)
        return
    with RedisServer(state_dir) as server:
        connection = connect(server.url)
        # Nobody else uses this Redis and our workers have not started, so nothing in it can be running.
        queue = TaskQueue(queue_name(store_id), connection)
        connection.delete(queue.key, queue.started_job_registry.key)
        yield server.url, connection


class LocalWorkers:
    """Runs `worker start` as a child process and stops it at the end. A context manager."""

    def __init__(self, redis_url: str, arguments: list[str]) -> None:
        self._url = redis_url
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.now = False
        """Whether to stop at once and return jobs to the queue, instead of finishing them."""

    def __enter__(self) -> "LocalWorkers":
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(LAUNCHER), "worker.cli", "start", "--with-parent", *self._arguments],
            env={**os.environ, "REDIS_URL": self._url},
            # Its other end closes with us, and the workers leave.
            stdin=subprocess.PIPE,
            # Keep a terminal's Ctrl-C from the workers: we stop them ourselves.
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
        """Raise WorkersLeftError if the workers have ended."""
        if self._process is not None and (code := self._process.poll()) is not None:
            raise WorkersLeftError(f"the workers ended with exit code {code}; their messages above say why")
