"""A redis-server for tests: a private Unix socket, no TCP port; it can be killed and started again."""

import subprocess
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from shared.redis_server import find_redis_server


class RedisProcess:
    """A context manager; `kill` is kill -9, `start` starts it again on the same socket and data."""

    def __init__(self, folder: Path, *, append_only: bool = False) -> None:
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
            "0",
            "--unixsocket",
            str(self._socket),
            "--dir",
            str(self._folder),
            "--save",
            "",
        ]
        if self._append_only:
            arguments += ["--appendonly", "yes", "--appendfsync", "everysec"]
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

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
        self._socket.unlink(missing_ok=True)
