"""The way to Redis: one clear line when there is none, and never a password in it."""

import socket
import ssl
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from redis import Redis

from shared.errors import InputError, RedisUnavailableError
from shared.jobs.connection import connect
from tests.redis_process import RedisProcess
from tests.tasks import wait_until


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("patient", [True, False])
def test_a_redis_that_answers(redis_url: str, patient: bool) -> None:
    client = connect(redis_url, patient=patient)
    client.set("x", 1)
    assert client.get("x") == b"1"


@pytest.mark.parametrize("host", ["127.0.0.1", "name.invalid"])
def test_no_redis_is_one_line_with_three_ways_on(closed_port: int, host: str) -> None:
    with pytest.raises(RedisUnavailableError) as caught:
        connect(f"redis://user:secret@{host}:{closed_port}/2")
    message = str(caught.value)
    assert f"{host}:{closed_port}" in message
    for way in ("docker compose up -d", "redis-server", "producer run"):
        assert way in message
    assert "\n" not in message
    assert "secret" not in message


def no_way(monkeypatch: pytest.MonkeyPatch, error: OSError, platform: str, url: str) -> str:
    """What is said when the system answers a connection with `error`."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("shared.jobs.connection.sys.platform", platform)
    with pytest.raises(RedisUnavailableError) as caught:
        connect(url)
    message = str(caught.value)
    assert "\n" not in message
    assert "secret" not in message
    return message


def test_macos_keeps_a_process_from_the_local_network(monkeypatch: pytest.MonkeyPatch) -> None:
    error, url = OSError(65, "No route to host"), "redis://:secret@192.168.1.5:6379"
    message = no_way(monkeypatch, error, "darwin", url)
    assert "macOS blocks this process from the local network: run it from Terminal or ssh" in message
    assert "docker" not in message
    assert "macOS" not in no_way(monkeypatch, error, "linux", url)


def test_a_redis_that_listens_on_its_own_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ConnectionRefusedError(61, "Connection refused")
    assert "Homebrew's listens on 127.0.0.1 only" in no_way(
        monkeypatch, error, "darwin", "redis://:secret@192.168.1.5:6379"
    )
    assert "Homebrew" not in no_way(monkeypatch, error, "darwin", "redis://:secret@127.0.0.1:6379")


def test_a_socket_that_is_not_there() -> None:
    with pytest.raises(RedisUnavailableError, match=r"/nowhere/redis\.sock"):
        connect("unix:///nowhere/redis.sock")


def test_something_else_answers(closed_port: int) -> None:
    with socket.create_server(("127.0.0.1", closed_port)) as server:

        def greet() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(RedisUnavailableError, match=str(closed_port)):
            connect(f"redis://127.0.0.1:{closed_port}")
        thread.join()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://user:secret@host",
        "redis://host:port",
        "redis://user:secret@host:99999999",
        "redis://user:secret@[::1",
        "redis://host/notanumber?x=%zz&db=x",
        "redis://:7/secret@host",
        "redis://:7#secret@host",
        "redis://:7?secret@host",
        "redis://secret/x@localhost:1",
        "redis:/:secret@host",
        ":secret@host:6379",
    ],
    ids=repr,
)
def test_no_redis_url(url: str) -> None:
    with pytest.raises((InputError, RedisUnavailableError)) as caught:
        connect(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_password_that_is_refused(own_redis: RedisProcess) -> None:
    with Redis.from_url(own_redis.url) as client:
        client.config_set("requirepass", "right")
    address = own_redis.url.removeprefix("unix://")
    for url in (f"unix://{address}", f"unix://:secret@{address}"):
        with pytest.raises(RedisUnavailableError, match="refuses us") as caught:
            connect(url)
        assert "secret" not in str(caught.value)
    assert connect(f"unix://:right@{address}").ping()


def test_a_patient_client_rides_out_a_restart(own_redis: RedisProcess) -> None:
    patient, impatient = connect(own_redis.url), connect(own_redis.url, patient=False)
    patient.set("kept", 1)
    assert impatient.ping()
    own_redis.kill()
    with pytest.raises(Exception, match=r"(?i)connect|closed|No such file"):
        impatient.ping()

    def later() -> None:
        time.sleep(0.3)
        own_redis.start()

    thread = threading.Thread(target=later)
    thread.start()
    assert patient.get("kept") == b"1"
    thread.join()
    assert impatient.ping()


@pytest.mark.parametrize(
    "url", ["rediss://:secret@localhost?ssl_ca_cert=/ca.crt", "redis://:secret@localhost?sl=1"]
)
def test_an_option_with_a_typo(url: str) -> None:
    with pytest.raises(InputError, match=r"no option '(ssl_ca_cert|sl)'; .*\?ssl_ca_certs=") as caught:
        connect(url)
    assert "secret" not in str(caught.value)


def test_a_redis_that_is_there_and_says_no_is_not_told_as_absent(own_redis: RedisProcess) -> None:
    with pytest.raises(RedisUnavailableError, match=r"DB index is out of range\); name a database") as caught:
        connect(f"{own_redis.url}?db=99")
    assert "docker compose" not in str(caught.value)
    with Redis.from_url(own_redis.url) as client:
        client.config_set("maxclients", 1)
        with pytest.raises(RedisUnavailableError, match="raise its maxclients"):
            connect(own_redis.url)


def test_a_redis_that_can_not_save(own_redis: RedisProcess) -> None:
    with Redis.from_url(own_redis.url) as client:
        client.config_set("save", "1 1")
        client.config_set("appendonly", "no")
        client.config_set("stop-writes-on-bgsave-error", "yes")
        client.set("x", 1)
        # As a full disk ends it: the name of the dump is that of a folder.
        folder = Path(client.config_get("dir")["dir"]) / "dump.rdb"
        folder.unlink(missing_ok=True)
        (folder / "in the way").mkdir(parents=True)
        client.bgsave()
        wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
    with pytest.raises(RedisUnavailableError, match=r"MISCONF.*; it can't save to its disk"):
        connect(own_redis.url)


def test_an_expired_certificate_is_told_apart_from_an_unknown_one(tmp_path: Path) -> None:
    authority = trustme.CA()
    now = datetime.now(UTC)
    expired = authority.issue_cert("localhost", not_after=now - timedelta(days=1))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    expired.configure_cert(context)
    with socket.create_server(("localhost", 0)) as server:

        def refuse() -> None:
            peer, _ = server.accept()
            with peer, suppress(OSError), context.wrap_socket(peer, server_side=True):
                pass

        thread = threading.Thread(target=refuse)
        thread.start()
        port = server.getsockname()[1]
        with pytest.raises(
            RedisUnavailableError, match="renew the server's certificate, or set this machine"
        ):
            connect(f"rediss://localhost:{port}?ssl_ca_certs={tmp_path / 'ca.crt'}")
        thread.join()
