"""An SFTP server within the test's process, by paramiko; whoever has the key sees the machine's own files."""

import getpass
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import paramiko


class InProcessSftp:
    """A server on loopback with keys of its own; a context manager. `home` is the client's home directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.address = ""
        self.port = 0
        self._listener: socket.socket | None = None
        self._transports: list[paramiko.Transport] = []

    def __enter__(self) -> "InProcessSftp":
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        for path in (self.folder / "host_key", ssh / "id_ecdsa"):
            key = paramiko.ECDSAKey.generate()
            key.write_private_key_file(str(path))
            path.with_suffix(".pub").write_text(f"{key.get_name()} {key.get_base64()}\n")
        self.let_in(True)
        self.start()
        self.address = f"sftp://{getpass.getuser()}@127.0.0.1:{self.port}"
        self.trust(True)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def trust(self, this: bool | None) -> None:
        """Let the client know this server, take it for another one (False), or know none (None)."""
        public = self.folder / "host_key.pub" if this else self.home / ".ssh/id_ecdsa.pub"
        line = "" if this is None else f"[127.0.0.1]:{self.port} {public.read_text()}"
        (self.home / ".ssh/known_hosts").write_text(line)

    def let_in(self, client: bool) -> None:
        """Whether the client's key opens the door."""
        self._allowed = (self.home / ".ssh/id_ecdsa.pub").read_text().split()[1] if client else ""

    def start(self) -> None:
        """Listen, on the same port as ever."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, args=(self._listener,), daemon=True).start()

    def kill(self) -> None:
        """The server and every session of it."""
        if self._listener:
            # Closing alone would not end an accept() that waits.
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for transport in self._transports:
            transport.close()
        self._transports.clear()

    def _listen(self, listener: socket.socket) -> None:
        key = paramiko.ECDSAKey.from_private_key_file(str(self.folder / "host_key"))
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            self._transports.append(transport)
            transport.add_server_key(key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Files)
            with suppress(paramiko.SSHException, EOFError, OSError):
                transport.start_server(event=threading.Event(), server=_Door(lambda: self._allowed))


class _Door(paramiko.ServerInterface):
    def __init__(self, allowed: Callable[[], str]) -> None:
        self._allowed = allowed

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        known = key.get_base64() == self._allowed()
        return paramiko.AUTH_SUCCESSFUL if known else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, channel_id: int) -> int:
        return paramiko.OPEN_SUCCEEDED


def _answers(method: Callable[..., Any]) -> Callable[..., Any]:
    """Errors of the system become SFTP's codes; no value means that all is well."""

    @wraps(method)
    def answer(*arguments: Any) -> Any:
        try:
            result = method(*arguments)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        return paramiko.SFTP_OK if result is None else result

    return answer


class _Handle(paramiko.SFTPHandle):
    @_answers
    def stat(self) -> Any:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))


class _Files(paramiko.SFTPServerInterface):
    """The machine's own files."""

    @_answers
    def list_folder(self, path: str) -> Any:
        from_stat = paramiko.SFTPAttributes.from_stat
        return [from_stat(entry.lstat(), entry.name) for entry in Path(path).iterdir()]

    @_answers
    def stat(self, path: str) -> Any:
        return paramiko.SFTPAttributes.from_stat(Path(path).stat())

    @_answers
    def lstat(self, path: str) -> Any:
        return paramiko.SFTPAttributes.from_stat(Path(path).lstat())

    @_answers
    def open(self, path: str, flags: int, attributes: Any) -> Any:
        handle = _Handle(flags)
        mode = "r+b" if flags & os.O_RDWR else "wb" if flags & os.O_WRONLY else "rb"
        handle.readfile = handle.writefile = os.fdopen(os.open(path, flags, 0o666), mode)
        return handle

    @_answers
    def remove(self, path: str) -> None:
        Path(path).unlink()

    @_answers
    def posix_rename(self, old: str, new: str) -> None:
        Path(old).replace(new)

    @_answers
    def mkdir(self, path: str, attributes: Any) -> None:
        Path(path).mkdir()

    @_answers
    def rmdir(self, path: str) -> None:
        Path(path).rmdir()
