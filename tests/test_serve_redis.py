"""`producer serve-redis`: a Redis that is right for a fleet, or none."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis
from redis.exceptions import AuthenticationError

from producer.cli import main
from shared import awake
from shared.errors import RedisUnavailableError
from shared.jobs.connection import connect
from tests.fleet import ROOT
from tests.tasks import wait_until

PASSWORD = 'a "quoted\\" # one'


class Server:
    """The command in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "REDIS_PASSWORD": PASSWORD}
        command = [sys.executable, "-m", "producer.cli", "serve-redis", "--dir", str(self.folder / "data")]
        command += ["--bind", "127.0.0.1", "--port", str(self.port), "--max-memory", "64MB"]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return self.process

    def client(self) -> Redis:
        return Redis(port=self.port, password=PASSWORD)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    if server.process and server.process.poll() is None:
        server.process.kill()
        server.process.wait()


@pytest.mark.parametrize(
    ("password", "says"),
    [(None, "needs a password: export REDIS_PASSWORD="), ("short", "at least 12 printable characters")],
)
def test_without_a_password_there_is_none(
    server: Server, monkeypatch: pytest.MonkeyPatch, password: str | None, says: str
) -> None:
    monkeypatch.delenv("REDIS_PASSWORD", raising=False)
    if password:
        monkeypatch.setenv("REDIS_PASSWORD", password)
    result = CliRunner().invoke(main, ["serve-redis", "--port", str(server.port)])
    assert (result.exit_code, says in result.output) == (2, True), result.output
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0


@pytest.mark.slow
def test_it_keeps_what_it_was_told_and_shows_no_password(server: Server) -> None:
    process = server.start()
    assert process.stdout
    assert f"listens on port {server.port}" in process.stdout.readline()
    with server.client() as client:
        wanted = {"appendonly": "yes", "maxmemory-policy": "noeviction", "maxmemory": "64000000"}
        assert wanted.items() <= client.config_get("*").items()
        client.set("kept", "yes")
        client.config_set("appendfsync", "always")
        pid = client.info("server")["process_id"]
    with Redis(port=server.port, password="wrong") as client, pytest.raises(AuthenticationError):
        client.ping()
    with pytest.raises(RedisUnavailableError, match="refuses us"):
        connect(f"redis://127.0.0.1:{server.port}")
    listing = subprocess.run(["ps", "-axww", "-o", "args="], capture_output=True, text=True, check=True)
    assert "quoted" not in listing.stdout
    second = Server(server.folder / "second")
    second.port = server.port
    output, _ = second.start().communicate(timeout=60)
    assert "already in use" in output
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    server.start()
    wait_until(lambda: server.port and _kept(server) == b"yes")


def _kept(server: Server) -> object:
    try:
        with server.client() as client:
            return client.get("kept")
    except OSError:
        return None


def test_a_mac_is_kept_awake_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS's caffeinate, and a Mac, are made up: what it is asked is written down."""
    said = tmp_path / "said"
    caffeinate = tmp_path / "caffeinate"
    caffeinate.write_text(f'#!/bin/sh\necho "$@" > {said}\nexec sleep 600\n')
    caffeinate.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with awake.awake():
        assert not said.exists(), "Linux has none"
    monkeypatch.setattr(awake.sys, "platform", "darwin")
    with awake.awake():
        wait_until(lambda: said.exists() and said.read_text() == f"-i -w {os.getpid()}\n")
