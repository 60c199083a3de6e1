"""A redis-server as docker-compose.tls.yml starts it: TLS, and the users of docs/redis-users.acl.

Where no redis-server was built with TLS, it runs without: what the users may do is the same.
"""

import os
import re
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

import trustme
import yaml
from redis import Redis
from redis.exceptions import RedisError

from producer.jobs.redis_server import find_redis_server

ROOT = Path(__file__).parent.parent
PASSWORDS = {"default": "tests-admin", "worker": "tests-worker/1", "producer": "tests-producer@2"}


class TlsRedis:
    """A context manager; `tls` says whether a redis-server with TLS was found."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.ca = folder / "ca.crt"
        self._process: subprocess.Popen[bytes] | None = None
        self.tls = True

    def url(self, user: str, password: str | None = None, host: str = "localhost") -> str:
        secret = quote(PASSWORDS[user] if password is None else password, safe="")
        if not self.tls:
            return f"redis://{user}:{secret}@{host}:{self.port}"
        return f"rediss://{user}:{secret}@{host}:{self.port}?ssl_ca_certs={self.ca}"

    def __enter__(self) -> "TlsRedis":
        self._write_certificates()
        self._write_users()
        compose = yaml.safe_load((ROOT / "docker-compose.tls.yml").read_text())
        text = re.sub(r"\$\{REDIS_MAXMEMORY:-4gb\}", "64mb", compose["configs"]["redis"]["content"])
        text = text.replace("tls-port 6379", f"tls-port {self.port}").replace("/tls/", f"{self._folder}/")
        config = self._folder / "redis.conf"
        config.write_text(text.replace("dir /data", f"dir {self._folder}") + "bind 127.0.0.1\n")
        for binary in _candidates():
            if self._start(binary, config):
                return self
        said = (self._folder / "log").read_text()
        assert re.search("Bad directive.*|Failed finding TLS support", said), said
        self.tls = False
        lines = config.read_text().replace(f"tls-port {self.port}", f"port {self.port}").splitlines()
        plain = [line for line in lines if not line.startswith("tls-") and line != "port 0"]
        config.write_text("\n".join(plain) + "\n")
        assert self._start(find_redis_server(), config), (self._folder / "log").read_text()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def _write_certificates(self) -> None:
        authority = trustme.CA()
        server = authority.issue_cert("localhost")
        authority.cert_pem.write_to_path(str(self.ca))
        server.private_key_pem.write_to_path(str(self._folder / "redis.key"))
        (self._folder / "redis.crt").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))

    def _write_users(self) -> None:
        text = (ROOT / "docs/redis-users.acl").read_text()
        for user, name in (("default", "ADMIN"), ("worker", "WORKER"), ("producer", "PRODUCER")):
            assert text.count(f"{name}-PASSWORD") == 1
            text = text.replace(f"{name}-PASSWORD", PASSWORDS[user])
        (self._folder / "users.acl").write_text(text)

    def _start(self, binary: Path, config: Path) -> bool:
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen([str(binary), str(config)], stdout=log, stderr=log)
        deadline = time.monotonic() + 15
        with Redis.from_url(self.url("default")) as client:
            while self._process.poll() is None:
                assert time.monotonic() < deadline, (self._folder / "log").read_text()
                try:
                    client.ping()
                except (RedisError, OSError):
                    time.sleep(0.02)
                else:
                    return True
        return False


def _candidates() -> list[Path]:
    on_path = [Path(folder) / "redis-server" for folder in os.environ["PATH"].split(os.pathsep)]
    return [path for path in [*on_path, find_redis_server()] if path.is_file()]
