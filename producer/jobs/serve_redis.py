"""A Redis for the fleet: on the network, with a password, its data kept; in the foreground until stopped."""

import contextlib
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from producer.jobs.redis_server import end_with_parent, find_redis_server
from shared.errors import InputError, RedisUnavailableError
from shared.printable import printable

MIN_PASSWORD = 12
START_SECONDS = 60.0
"""Reading the data of a long run takes its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisOptions:
    """How a fleet's Redis is started."""

    password: str
    folder: Path
    """Where it keeps its data and its log."""
    bind: str
    """The addresses at which it listens, separated by spaces."""
    port: int
    max_memory: int
    """Bytes."""

    def configuration(self) -> str:
        """Return the lines of a redis.conf."""
        return "\n".join(
            [
                f"requirepass {_quoted(self.password)}",
                f"bind {' '.join(self.bind.split())}",
                f"port {self.port}",
                f"dir {_quoted(str(self.folder))}",
                # Jobs and shards survive a crash: at most a second of them is done again.
                "appendonly yes",
                "appendfsync everysec",
                'save ""',
                # Full means an error that workers wait out, never a key thrown away.
                f"maxmemory {self.max_memory}",
                "maxmemory-policy noeviction",
                "tcp-keepalive 60",
                "daemonize no",
                "",
            ]
        )


def check_password(password: str | None) -> str:
    """Return the password.

    Raises:
        InputError: there is none, it is too short, or it has control characters in it.
    """
    if not password:
        raise InputError(
            "a Redis on the network needs a password: export REDIS_PASSWORD=something-long, for example from "
            "`openssl rand -hex 24`"
        )
    if len(password) < MIN_PASSWORD or not password.isprintable():
        raise InputError(
            f"REDIS_PASSWORD must have at least {MIN_PASSWORD} printable characters; `openssl rand -hex 24` "
            "makes one"
        )
    return password


class FleetRedis:
    """Runs the redis-server. A context manager.

    Raises:
        InputError: the folder can't be made.
        RedisUnavailableError: there is no redis-server, or it does not start.
    """

    def __init__(self, options: RedisOptions) -> None:
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "FleetRedis":
        folder = self._options.folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = folder / "redis.log"
        before = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                # Its configuration comes through standard input: the password is in no file or process list.
                [str(find_redis_server()), "-"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )
        assert self._process.stdin
        self._process.stdin.write(self._options.configuration().encode())
        self._process.stdin.close()
        if not self._is_ready():
            self.__exit__()
            said = log.read_bytes()[before:].decode("utf-8", "replace").strip().splitlines() or ["nothing"]
            why = next((line for line in reversed(said) if "already in use" in line), said[-1])
            raise RedisUnavailableError(f"redis-server did not start ({printable(why, 200)}); see {log}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        return self._process.wait() if self._process else 0

    def _is_ready(self) -> bool:
        deadline = time.monotonic() + START_SECONDS
        host = "127.0.0.1" if "*" in self._options.bind else self._options.bind.split()[0]
        with Redis(host=host, port=self._options.port, password=self._options.password) as client:
            while time.monotonic() < deadline and self._process and self._process.poll() is None:
                with contextlib.suppress(RedisError, OSError):
                    # Another server may answer at this port: ours then ends by itself, and says why.
                    if int(client.info("server")["process_id"]) == self._process.pid:
                        return True
                time.sleep(0.05)
        return False


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
