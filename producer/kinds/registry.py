"""Finds the parts of every kind."""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module

from producer.folder.calib_folder import CalibFolder
from producer.kinds.part import Part
from shared.kinds.registry import NAMES

FindParts = Callable[[CalibFolder], Sequence[Part]]

PARTS_OF: dict[str, FindParts] = {name: import_module(f"producer.kinds.{name}").find_parts for name in NAMES}


def parts_of(folder: CalibFolder) -> Iterator[Part]:
    """Yield all parts of a folder, kind by kind: a part can depend on what an earlier kind has collected."""
    for find_parts in PARTS_OF.values():
        yield from find_parts(folder)
