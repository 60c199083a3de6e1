"""A JSON file with one struct. It is read again only after it has changed."""

from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from shared.errors import InputError
from shared.files import write_atomically

AnyStruct = TypeVar("AnyStruct", bound=Struct)


class Stamp(NamedTuple):
    """Time and size of a file, by which a change is noticed."""

    mtime_ns: int
    size: int


def stamp_of(path: Path) -> Stamp | None:
    """Return the stamp of a file; None if the file is missing."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return Stamp(status.st_mtime_ns, status.st_size)


class JsonFile(Generic[AnyStruct]):
    """One struct in one file. While the file is unchanged, `read` returns the same object."""

    def __init__(self, path: Path, kind: type[AnyStruct]) -> None:
        self.path = path
        self._decoder = msgspec.json.Decoder(kind)
        self._known: tuple[Stamp, AnyStruct] | None = None

    def read(self) -> AnyStruct | None:
        """Return the struct; None if the file is missing.

        Raises:
            InputError: the file is damaged, or of a newer revision.
        """
        stamp = stamp_of(self.path)
        if stamp is None:
            return None
        if self._known is None or self._known[0] != stamp:
            self._known = stamp, self._decoded()
        return self._known[1]

    def write(self, content: AnyStruct) -> None:
        """Write the struct, in place of an older one."""
        write_atomically(self.path, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")

    def _decoded(self) -> AnyStruct:
        data = self.path.read_bytes()
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as error:
            raise InputError(newer_revision(self.path, error)) from None
        except (msgspec.DecodeError, UnicodeError) as error:
            raise InputError(
                f"{self.path} can't be read: {error}; restore it, or use another --calib-dir"
            ) from None


def newer_revision(path: Path, reason: Exception) -> str:
    """Return a message about a file that is whole, but says what this revision does not know."""
    return (
        f"{path} is not what this revision of bitfleet writes ({reason}): update bitfleet here if a newer "
        "one wrote it, or use another --calib-dir"
    )
