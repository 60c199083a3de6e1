"""Who computed: host, versions, and what the machine allows."""

import importlib.util
import os
import platform
import socket
from functools import cache
from importlib import metadata

from shared import __version__
from shared.errors import ModelUnavailableError


def host_name() -> str:
    """This machine's name, without its domain."""
    return socket.gethostname().split(".")[0] or "unknown"


@cache
def versions() -> dict[str, str]:
    """Of everything that could change a result."""
    return {
        "bitfleet": __version__,
        "mlx": metadata.version("mlx"),
        "diffusionkit": metadata.version("diffusionkit"),
        "numpy": metadata.version("numpy"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def memory_bytes() -> int:
    """Physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_mlx() -> None:
    """Say at once, without the seconds of importing it, when this machine can't compute.

    Raises:
        ModelUnavailableError: mlx or diffusionkit is not installed.
    """
    for package in ("mlx", "diffusionkit"):
        if importlib.util.find_spec(package) is None:
            raise ModelUnavailableError(
                f"{package} is not installed on this machine; in bitfleet's folder: pip install '.[worker]'"
            )
