"""The folder that an export goes to: written beside it, whole, then renamed."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from producer.inspection.inspect_checkpoint import inspect_checkpoint
from shared.decoding import decode_or_none
from shared.errors import InputError
from shared.exported import CONFIG, Origin, config_decoder
from shared.files import fsync_folder


def check_target(target: Path, *, force: bool) -> None:
    """Check that an export may go to this folder.

    Raises:
        InputError: something is there that is not an earlier export, or that may not be replaced.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file; give --out a folder that does not exist yet")
    if not any(target.iterdir()):
        return
    if origin_of(target) is None:
        raise InputError(f"{target} is not empty, and is no earlier export; give --out another folder")
    if not force:
        raise InputError(f"{target} holds an earlier export; --force replaces it")


def is_whole_export_of(folder: Path, plan_id: str) -> bool:
    """Return whether a folder holds the model of this plan, and nothing is wrong with it."""
    origin = origin_of(folder)
    if origin is None or origin.plan_id != plan_id:
        return False
    try:
        return not inspect_checkpoint(folder).all_problems
    except InputError:
        return False


def origin_of(folder: Path) -> Origin | None:
    """Return what the model in a folder was made from; None if `producer export` did not write it."""
    try:
        data = (folder / CONFIG).read_bytes()
    except OSError:
        return None
    config = decode_or_none(config_decoder, data)
    return config.bitfleet if config else None


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`, and rename it to `target` once it is written.

    If anything fails, `target` stays as it was. What an earlier attempt left when it was killed is removed.

    Raises:
        InputError: another export to the same folder is running.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        _lock(descriptor, target)
        for leftover in partial.iterdir():
            _remove(leftover)
        try:
            yield partial
            fsync_folder(partial)
            _put_in_place(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _lock(descriptor: int, target: Path) -> None:
    """The lock ends with this process, however it ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(f"another export to {target} is running; wait for it") from None


def _put_in_place(partial: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
