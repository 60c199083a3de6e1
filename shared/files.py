"""Write files so that a crash leaves either the old file or the new one, never half of it."""

import errno
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
"""Names of `write_atomically`'s temporary files."""


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `data`, given whole or in pieces, to `path`. Missing parent folders are created.

    Raises:
        OSError: the disk is full or read-only, or permission is missing. `path` is then unchanged.
    """
    try:
        _write(path, data)
    except OSError as error:
        # Name the wanted file: the system names none, or the temporary one.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def _write(path: Path, data: bytes | Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in (data,) if isinstance(data, bytes) else data:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            # mkstemp makes private files, but other users' notebooks should be able to read these.
            os.fchmod(file.fileno(), 0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def delete_temporaries(root: Path, leave: Path) -> None:
    """Delete what killed processes left of `write_atomically`, in `root` and below, but not in `leave`.

    The caller makes sure that nobody writes there now.
    """
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if Path(folder, name) != leave]
        for name in names:
            if _TEMPORARY.fullmatch(name):
                Path(folder, name).unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, if the file system supports that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Network shares (SMB) and some FUSE file systems can't fsync folders; the files themselves are safe.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES):
            raise
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
