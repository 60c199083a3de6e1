"""OpenSSH's server, where it is installed, and a local S3 server for tests."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_sshd() -> str | None:
    """OpenSSH's server, where it is installed and keys can be made for it."""
    return shutil.which("ssh-keygen") and shutil.which(
        "sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
    )


class OpenSsh:
    """sshd on loopback with keys of its own; a context manager. `home` is the client's home directory."""

    def __init__(self, folder: Path) -> None:
        self._sshd = find_sshd()
        self.folder = folder
        self.home = folder / "home"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"sftp://{getpass.getuser()}@127.0.0.1:{self.port}"

    def __enter__(self) -> "OpenSsh":
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        for key in (self.folder / "host_key", ssh / "id_ed25519"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        self.let_in(True)
        self.trust(True)
        (self.folder / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        )
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def trust(self, this: bool | None) -> None:
        """Let the client know this server, take it for another one (False), or know none (None)."""
        public = self.folder / "host_key.pub" if this else self.home / ".ssh/id_ed25519.pub"
        kind, blob, *_ = public.read_text().split()
        line = "" if this is None else f"[127.0.0.1]:{self.port} {kind} {blob}\n"
        (self.home / ".ssh/known_hosts").write_text(line)

    def let_in(self, client: bool) -> None:
        """Whether the client's key opens the door."""
        public = (self.home / ".ssh/id_ed25519.pub").read_text()
        (self.folder / "authorized_keys").write_text(public if client else "")

    def start(self) -> None:
        if os.geteuid() == 0:
            # Where Debian's service would put it.
            Path("/run/sshd").mkdir(exist_ok=True)
        log = (self.folder / "log").open("ab")
        command = [str(self._sshd), "-D", "-e", "-f", str(self.folder / "config")]
        # Its sessions are processes of their own, to be killed with it.
        self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        log.close()
        deadline = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                said = (self.folder / "log").read_text()
                if self._process.poll() is not None:
                    pytest.skip(f"sshd does not start here: {said.strip()[-200:]}")
                assert time.monotonic() < deadline, said
                time.sleep(0.02)

    def kill(self) -> None:
        """The server and every session of it."""
        if self._process and self._process.poll() is None:
            for child in _children(self._process.pid):
                subprocess.run(["kill", "-9", str(child)], check=False, capture_output=True)
            self._process.kill()
            self._process.wait()


def _children(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in listing.stdout.splitlines()]
    below = {pid}
    for _ in range(4):
        below |= {child for child, parent in pairs if parent in below}
    return sorted(below - {pid}, reverse=True)


class S3Server:
    """moto's S3 on loopback; a context manager."""

    def __init__(self) -> None:
        pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'bitfleet[s3]'")
        pytest.importorskip("moto.server", reason="moto's server is not installed (dev extra)")
        self.port = free_port()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "S3Server":
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
