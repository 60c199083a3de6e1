"""A redis-server for tests: a private Unix socket; it can be killed, frozen and started again."""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from producer.jobs.redis_server import find_redis_server


@contextmanager
def short_folder() -> Iterator[Path]:
    """A new folder, gone afterwards."""
    # A socket's path may have 104 bytes on a Mac, less than pytest's folders have.
    folder = Path(tempfile.mkdtemp(prefix="bf-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class RedisProcess:
    """A context manager; `kill` is kill -9, `start` starts it again on the same socket and data."""

    def __init__(self, folder: Path, *, append_only: bool = False, addresses: Sequence[str] = ()) -> None:
        """TCP port 6379 of `addresses`, if any, is open to anyone who can reach them."""
        self._addresses = addresses
        self._folder = folder
        self._append_only = append_only
        self._socket = folder / "r.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    def __enter__(self) -> "RedisProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        arguments = [
            "--port",
            "6379" if self._addresses else "0",
            "--unixsocket",
            str(self._socket),
            "--dir",
            str(self._folder),
            "--save",
            "",
        ]
        if self._append_only:
            arguments += ["--appendonly", "yes", "--appendfsync", "everysec"]
        if self._addresses:
            arguments += ["--bind", *self._addresses, "--protected-mode", "no"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([str(find_redis_server()), *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + 15
        with Redis.from_url(self.url) as client:
            while time.monotonic() < deadline:
                try:
                    client.ping()
                    return
                except (RedisError, OSError):
                    time.sleep(0.01)
        self.kill()
        raise RuntimeError((self._folder / "log").read_text())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Neither answers nor closes connections meanwhile."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
        self._socket.unlink(missing_ok=True)
