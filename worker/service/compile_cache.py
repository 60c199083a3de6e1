"""Where MLX keeps the small libraries that it compiles on Linux: in a folder of this process alone.

MLX keeps them in the machine's temporary folder, loads what it finds there, whoever wrote it, and fails
where another user's folder stands in its way. Here each process has its own (mode 0700). It begins with links
to what processes of the same user compiled before, and leaves its own to the next ones.
"""

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

PREFIX = "process-"


def use_own_compile_cache() -> Path | None:
    """Let MLX compile into a folder of this process; return it. To be called before anything is computed.

    Nothing is done on a Mac, where the GPU's programs are compiled in memory and the temporary folder is the
    user's own; nor where there is no room. What else it keeps in the temporary folder is there, too.
    """
    if sys.platform != "linux":
        return None
    try:
        home = _users_folder()
        _sweep(home)
        own = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=home))
        kept = home / "kept"
        _link_libraries(kept, own)
    except OSError:
        return None
    # C++'s temporary folder, too: Python sets the process's own environment.
    os.environ["TMPDIR"] = str(own)
    tempfile.tempdir = None
    atexit.register(_leave, own, kept)
    return own


def _users_folder() -> Path:
    """Return this user's folder for all processes; a new one if its place is taken by somebody else."""
    folder = Path(tempfile.gettempdir()) / f"bitfleet-mlx-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if status.st_uid == os.getuid() and not status.st_mode & 0o077 and not folder.is_symlink():
        return folder
    return Path(tempfile.mkdtemp(prefix="bitfleet-mlx-"))


def _leave(own: Path, kept: Path) -> None:
    with contextlib.suppress(OSError):
        _link_libraries(own, kept)
    shutil.rmtree(own, ignore_errors=True)


def _link_libraries(source: Path, target: Path) -> None:
    """Link every library below `source` to the same place below `target`, unless there is one."""
    for library in source.rglob("*.so"):
        place = target / library.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(library, place)


def _sweep(home: Path) -> None:
    """Delete what killed processes left behind."""
    for folder in home.glob(f"{PREFIX}*"):
        try:
            os.kill(int(folder.name.removeprefix(PREFIX).partition("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, OSError):
            continue
