"""Seals: size, time and sha256 of an image's files when they were collected, to detect changes.

Each collected image has a seal beside its record: of its samples, and of its shard if that is kept. The seal
says which files an image has. A file with the sealed size and time counts as unchanged.
If only the time differs, its sha256 is compared, because copying a folder changes times.
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from shared.decoding import decode_or_none
from shared.files import write_atomically


class SampleSeal(Struct, frozen=True, kw_only=True):
    """The seal of one file."""

    name: str
    """The file's name, without its folder."""
    size: int
    mtime_ns: int
    sha256: str


_decoder = msgspec.json.Decoder(tuple[SampleSeal, ...])


def write_seals(path: Path, files: Sequence[Path]) -> None:
    """Write the seals of an image's files as they are now."""
    seals = tuple(_seal(file) for file in files)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(seals), indent=1) + b"\n")


class SealCheck(NamedTuple):
    """What a look at an image's files has found."""

    damage: str | None
    """What is wrong with the first damaged file; None if all are as they were sealed."""
    stale: bool
    """A seal is missing, or its time is another: written anew, it makes the next check fast."""


def check_seals(seals: Mapping[str, SampleSeal], files: Sequence[Path]) -> SealCheck:
    """Compare files with their seals.

    Args:
        seals: by file name. A file without one (of an older revision) is intact if it is a sound NPZ.
        files: of the image, in order.
    """
    stale = False
    for file in files:
        seal = seals.get(file.name)
        damage = None
        try:
            status = file.stat()
            if seal is None:
                stale = True
                if not _is_sound(file):
                    damage = f"{file} is damaged"
            elif status.st_size != seal.size:
                damage = f"{file} has {status.st_size} bytes, {seal.size} were collected"
            elif status.st_mtime_ns != seal.mtime_ns:
                stale = True
                if _seal(file).sha256 != seal.sha256:
                    damage = f"{file} was altered since it was collected"
        except FileNotFoundError:
            damage = f"{file} is gone"
        except OSError as error:
            damage = f"{file} can't be read ({error.strerror})"
        if damage:
            return SealCheck(damage, stale)
    return SealCheck(None, stale)


def _seal(path: Path) -> SampleSeal:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    status = path.stat()
    return SampleSeal(name=path.name, size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=digest)


def _is_sound(path: Path) -> bool:
    """Return whether the checksums in an NPZ file are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        return False


def read_seals(path: Path) -> dict[str, SampleSeal]:
    """Return the seals by file name. Unreadable seals count as missing, which only makes the check slower."""
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    return {seal.name: seal for seal in decode_or_none(_decoder, data) or ()}
