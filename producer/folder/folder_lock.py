"""One writer a folder: a lock that the death of its holder frees, on local disks and on network shares.

An OS lock excludes the other processes of this machine, and the system frees it when its holder dies. Not
every network share passes it on to other machines. So the holder also keeps a file that says who it is, and
changes it every few seconds: a file that does not change any more was left by a dead holder.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct

from shared.decoding import decode_or_none
from shared.errors import FolderLostError
from shared.printable import printable

BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""A holder that is silent for so long is dead, asleep or cut off."""
POLL_SECONDS = 0.1
TELL_SECONDS = 1.0
"""A wait that is shorter is not worth a line."""

_NO_OS_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Holder(Struct, frozen=True, kw_only=True):
    """Who holds a folder."""

    host: str
    pid: int
    command: str
    since: str
    """When the command started: local time with its zone, ISO 8601."""
    kernel: str
    """See `kernel_id`."""
    token: str
    """Random, one for each time that a lock is taken."""
    beats: int = 0

    def __str__(self) -> str:
        text = f"`producer {self.command}` on {self.host}, process {self.pid}, since {self.since}"
        return printable(text, 300)


_decoder = msgspec.json.Decoder(Holder)


class FolderLock:
    """A lock in a folder. Taken again within the same process, it would wait for itself.

    If a holder that sleeps or is cut off loses the lock to another machine, `check` says so.
    """

    def __init__(self, state_dir: Path, tell: Callable[[str], None]) -> None:
        self._path = state_dir / "lock"
        self._holder_path = state_dir / "holder.json"
        self._tell = tell
        self._started = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
        self._file: int | None = None
        self._mine: Holder | None = None
        self._lost: Holder | None = None
        self._beating: tuple[threading.Thread, threading.Event] | None = None
        self._seen: tuple[bytes, float] | None = None
        """What another holder's file held, and when that was first seen, on the monotonic clock."""

    @contextlib.contextmanager
    def hold(self, command: str) -> Iterator[None]:
        """Hold the lock; wait for it if another process has it, and say who that is.

        Args:
            command: what this process does, for the messages of others.

        Raises:
            OSError: the folder can't be written.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._wait(command)
        try:
            yield
        finally:
            self._release()

    def check(self) -> None:
        """Return if this process still has the lock.

        Raises:
            FolderLostError: another one took it, because this one was silent for too long.
        """
        if self._lost is not None:
            raise FolderLostError(
                f"this machine slept or was cut off, and {self._lost} has taken over "
                f"{self._path.parent.parent}; nothing was lost, the same command goes on where it was"
            )

    def _wait(self, command: str) -> None:
        started, told = time.monotonic(), False
        while (holder := self._try(command)) is not None:
            if not told and time.monotonic() - started > TELL_SECONDS:
                self._tell(f"waiting for {holder}, which works in {self._path.parent.parent}")
                told = True
            time.sleep(POLL_SECONDS)

    def _try(self, command: str) -> Holder | str | None:
        """Take the lock and return None, or return who has it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _os_lock(descriptor)
            found = _content(self._holder_path)
            holder = decode_or_none(_decoder, found) if found else None
            if locked is False or not self._is_left(found, holder, bool(locked)):
                os.close(descriptor)
                return holder or "another process"
            if found is not None:
                self._holder_path.unlink(missing_ok=True)
            mine = Holder(
                host=socket.gethostname(),
                pid=os.getpid(),
                command=command,
                since=self._started,
                kernel=kernel_id(),
                token=secrets.token_hex(8),
            )
            if not _create(self._holder_path, mine, needed=not locked):
                os.close(descriptor)
                return "another process"
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        self._file, self._mine, self._lost, self._seen = descriptor, mine, None, None
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(mine, stop), daemon=True)
        self._beating = thread, stop
        thread.start()
        return None

    def _is_left(self, found: bytes | None, holder: Holder | None, locked: bool) -> bool:
        """Return whether there is no holder, or only the file of a dead one."""
        if found is None:
            return True
        if locked and holder is not None and holder.kernel == kernel_id():
            # It would have the OS lock if it lived.
            return True
        if self._seen is None or self._seen[0] != found:
            self._seen = found, time.monotonic()
        return time.monotonic() - self._seen[1] > STALE_SECONDS

    def _beat(self, mine: Holder, stop: threading.Event) -> None:
        while not stop.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                found = _content(self._holder_path)
                holder = decode_or_none(_decoder, found) if found else None
                if holder is not None and holder.token != mine.token:
                    self._lost = holder
                    return
                mine = msgspec.structs.replace(mine, beats=mine.beats + 1)
                self._holder_path.write_bytes(msgspec.json.encode(mine))

    def _release(self) -> None:
        if self._beating is not None:
            thread, stop = self._beating
            stop.set()
            thread.join()
        try:
            found = _content(self._holder_path)
            holder = decode_or_none(_decoder, found) if found else None
            if holder is not None and self._mine is not None and holder.token == self._mine.token:
                self._holder_path.unlink(missing_ok=True)
        finally:
            if self._file is not None:
                os.close(self._file)
            self._file = self._mine = self._beating = None


@cache
def kernel_id() -> str:
    """Return an id of this machine's running kernel, whose processes share OS locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        pass
    try:
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    return found or f"unknown-{secrets.token_hex(8)}"


def _os_lock(descriptor: int) -> bool | None:
    """Return whether the OS lock could be taken; None if this file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_OS_LOCKS:
            return None
        raise
    return True


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _create(path: Path, holder: Holder, *, needed: bool) -> bool:
    """Write a new holder file; return False if another process has just done so.

    On a full disk there is none, unless it is `needed` because there is no OS lock.
    """
    try:
        with path.open("xb") as file:
            file.write(msgspec.json.encode(holder))
    except FileExistsError:
        return False
    except OSError as error:
        if needed or error.errno not in _NO_ROOM:
            raise
    return True
