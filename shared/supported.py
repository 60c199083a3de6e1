"""Which machines bitfleet supports. `make install` runs this file with whatever Python it was given.

So it must be read by old Pythons, too, and imports nothing that is not part of Python.
"""

from __future__ import annotations

import platform
import sys

PYTHONS = ((3, 11), (3, 13))
"""The oldest and the newest. coremltools 9.0, which DiffusionKit asks for, has no wheel for Python 3.14."""
OLDEST_MACOS = 14


def why_unsupported(
    version: tuple[int, int] | None = None, system: str = "", machine: str = "", macos: str = ""
) -> str | None:
    """Return what is wrong with this Python and machine, and what mends it; None if nothing is.

    Args:
        version: Python's major and minor version. All arguments are those of this process by default.
        system: `sys.platform`.
        machine: `platform.machine()`, as in arm64.
        macos: the release of macOS, as in 15.1; empty elsewhere.
    """
    version = version or (sys.version_info[0], sys.version_info[1])
    system = system or sys.platform
    machine = machine or platform.machine()
    macos = macos or platform.mac_ver()[0]
    if system == "darwin" and machine != "arm64":
        return (
            "this Python is built for %s, perhaps run by Rosetta; bitfleet needs Apple silicon and a Python "
            "for arm64, such as that of `brew install python@3.12`" % machine
        )
    if system == "darwin" and macos and int(macos.split(".")[0]) < OLDEST_MACOS:
        return "macOS %s is too old: MLX needs %d or newer" % (macos, OLDEST_MACOS)
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        numbers = version + PYTHONS[0] + PYTHONS[1]
        return (
            "this is Python %d.%d; bitfleet runs with %d.%d to %d.%d: say which with make PYTHON=python3.12"
            % numbers
        )
    return None


if __name__ == "__main__":
    sys.exit(why_unsupported())
