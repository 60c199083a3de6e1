"""What hostile input must not do, by Python's audit events: start programs, unpickle, write elsewhere."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class"}
CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
}

_roots: tuple[str, ...] | None = None
_seen: list[str] = []


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if _roots is None:
        return
    if event in FORBIDDEN or (event == "exec" and args and args[0] is None):
        _seen.append(f"{event} {args!r}"[:300])
    elif event in CHANGES or (event == "open" and _writes(args)):
        path = args[0]
        if isinstance(path, (str, bytes)) and not os.path.realpath(os.fsdecode(path)).startswith(_roots):
            _seen.append(f"{event} {path!r}")


def trap(*args: Any, **kwargs: Any) -> None:
    """To be named in a hostile job: called by nobody."""
    _seen.append("trap")


def _writes(args: tuple[Any, ...]) -> bool:
    return isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


# It can't be taken away again, only told to look away.
sys.addaudithook(_hear)


@contextmanager
def nothing_forbidden(*roots: Path) -> Iterator[None]:
    """Fail when a program is started, a pickle names a class, or a file outside of `roots` is changed."""
    global _roots
    _seen.clear()
    _roots = tuple(str(root.resolve()) for root in roots) or ("/nowhere/",)
    try:
        yield
    finally:
        _roots = None
    assert _seen == []
