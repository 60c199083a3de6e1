"""Seals: size, time and sha256 of an image's samples when they were collected, to detect changes.

Each collected image has a seal beside its record. A file with the sealed size and time counts as unchanged.
If only the time differs, its sha256 is compared, because copying a folder changes times.
"""

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

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


def write_seals(path: Path, samples: Sequence[Path]) -> None:
    """Write the seals of an image's samples as they are now."""
    seals = tuple(_seal(sample) for sample in samples)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(seals), indent=1) + b"\n")


def first_damage(path: Path, samples: Sequence[Path], *, renew: bool = False) -> str | None:
    """Return what is wrong with the first damaged sample; None if all are as they were sealed.

    Args:
        path: the seals. An image without seals (of an older revision) is intact if its NPZ files are.
        samples: the image's files, in order.
        renew: write the seals again if they are missing or if only times differ, to make the next check fast.
    """
    seals = _read_seals(path)
    stale = len(seals) != len(samples)
    for sample in samples:
        seal = seals.get(sample.name)
        try:
            status = sample.stat()
            if seal is None:
                if not _is_sound(sample):
                    return f"{sample} is damaged"
            elif status.st_size != seal.size:
                return f"{sample} has {status.st_size} bytes, {seal.size} were collected"
            elif status.st_mtime_ns != seal.mtime_ns:
                stale = True
                if _seal(sample).sha256 != seal.sha256:
                    return f"{sample} was altered since it was collected"
        except FileNotFoundError:
            return f"{sample} is gone"
        except OSError as error:
            return f"{sample} can't be read ({error.strerror})"
    if stale and renew:
        write_seals(path, samples)
    return None


def _seal(sample: Path) -> SampleSeal:
    with sample.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    status = sample.stat()
    return SampleSeal(name=sample.name, size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=digest)


def _is_sound(sample: Path) -> bool:
    """Return whether the checksums in an NPZ file are right."""
    try:
        with zipfile.ZipFile(sample) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        return False


def _read_seals(path: Path) -> dict[str, SampleSeal]:
    """Return the seals by file name. Unreadable seals count as missing, which only makes the check slower."""
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    return {seal.name: seal for seal in decode_or_none(_decoder, data) or ()}
