"""docker-compose.yml: a real redis-server takes its very configuration, and keeps what it was told."""

import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

from producer.jobs.redis_server import find_redis_server
from shared.errors import RedisUnavailableError
from shared.jobs.connection import connect

COMPOSE = Path(__file__).parent.parent / "docker-compose.yml"
PASSWORD = "tests-only"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return content


def filled_in(text: str, **variables: str) -> str:
    """What compose makes of ${NAME}, ${NAME:-default} and ${NAME:?error}."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        return variables.get(name, rest if kind == ":-" else "")

    return re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """redis-server with the compose file's configuration, its folder and port being ours."""

    def __init__(self, compose: dict[str, Any], folder: Path, maxmemory: str = "64mb") -> None:
        self.port = free_port()
        text = compose["configs"]["redis"]["content"]
        text = filled_in(text, REDIS_PASSWORD=PASSWORD, REDIS_MAXMEMORY=maxmemory)
        self.config = folder / "redis.conf"
        self.config.write_text(
            text.replace("dir /data", f"dir {folder}") + f"\nport {self.port}\nbind 127.0.0.1\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Redis:
        command = [str(find_redis_server()), str(self.config)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        client = Redis(port=self.port, password=PASSWORD)
        for _ in range(200):
            try:
                client.ping()
                return client
            except RedisConnectionError:
                time.sleep(0.05)
        raise AssertionError("redis-server did not start with this configuration")

    def kill(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def server(compose: dict[str, Any], tmp_path: Path) -> Iterator[Server]:
    server = Server(compose, tmp_path)
    yield server
    server.kill()


def test_a_killed_server_has_everything_again(server: Server) -> None:
    client = server.start()
    client.set("shard", b"x" * 1000)
    time.sleep(1.2)  # appendfsync everysec
    server.kill()
    assert server.start().get("shard") == b"x" * 1000


def test_it_wants_its_password(server: Server) -> None:
    server.start()
    with pytest.raises(RedisUnavailableError, match="refuses us"):
        connect(f"redis://127.0.0.1:{server.port}")
    assert connect(f"redis://:{PASSWORD}@127.0.0.1:{server.port}").ping()


def test_full_is_an_error_and_evicts_nothing(compose: dict[str, Any], tmp_path: Path) -> None:
    server = Server(compose, tmp_path, maxmemory="8mb")
    try:
        client = server.start()
        client.set("first", b"x")
        with pytest.raises(OutOfMemoryError):
            for index in range(100):
                client.set(f"shard{index}", b"x" * 1_000_000)
        assert client.get("first") == b"x"
    finally:
        server.kill()


def test_no_password_is_an_argument_and_data_outlives_the_container(compose: dict[str, Any]) -> None:
    service = compose["services"]["redis"]
    assert not any("REDIS_PASSWORD" in part for part in service["command"])
    assert "REDIS_PASSWORD" not in str(service["healthcheck"])
    assert "redis-data:/data" in service["volumes"]
    assert "redis-data" in compose["volumes"]
