"""Seals: size, time and sha256 of an image's samples as they were collected, so that a change is noticed.

They lie beside the records, one a collected image. A file of the sealed size and time is taken for
unchanged; any other time is looked into, for copying a folder changes times and no bytes.
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
    """One file."""

    name: str
    """Without its folder."""
    size: int
    mtime_ns: int
    sha256: str


_decoder = msgspec.json.Decoder(tuple[SampleSeal, ...])


def write_seals(path: Path, samples: Sequence[Path]) -> None:
    """Seal an image's samples as they are."""
    seals = tuple(_seal(sample) for sample in samples)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(seals), indent=1) + b"\n")


def first_damage(path: Path, samples: Sequence[Path], *, renew: bool = False) -> str | None:
    """Return what is wrong with the first sample that is not as it was sealed; None if all are.

    Args:
        path: the seals. An image collected before there were any is whole if its files are sound NPZs.
        samples: the image's files, in order.
        renew: write the seals anew where they are missing or only the times differ, so that the next look
            is a quick one.
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
    """Whether the checksums that every NPZ holds of its arrays are right."""
    try:
        with zipfile.ZipFile(sample) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        return False


def _read_seals(path: Path) -> dict[str, SampleSeal]:
    """By name; none where they can't be read, which costs a closer look and nothing else."""
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    return {seal.name: seal for seal in decode_or_none(_decoder, data) or ()}
