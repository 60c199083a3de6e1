"""What the producer does with each kind of task, found by the kind's name."""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module

from producer.folder.calib_folder import CalibFolder
from producer.kinds.part import Part
from shared.kinds.registry import NAMES

FindParts = Callable[[CalibFolder], Sequence[Part]]

PARTS_OF: dict[str, FindParts] = {name: import_module(f"producer.kinds.{name}").find_parts for name in NAMES}


def parts_of(folder: CalibFolder) -> Iterator[Part]:
    """Every part of a folder. Kinds are looked at one by one, so a part may follow from one before it."""
    for find_parts in PARTS_OF.values():
        yield from find_parts(folder)
