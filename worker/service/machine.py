"""What this machine is: host name, versions, and whether it can compute."""

import importlib.util
import os
import platform
import socket
from contextlib import suppress
from functools import cache
from importlib import metadata

from shared import __version__
from shared.errors import ModelUnavailableError
from shared.runs import PROTOCOL


def host_name() -> str:
    """Return this machine's name, without its domain."""
    return socket.gethostname().split(".")[0] or "unknown"


@cache
def versions() -> dict[str, str]:
    """Of everything that could change a result, and where it ran. Imports MLX: only a job may ask.

    `tf32` is "off", or "allowed": then chips that have it (M5 and later) multiply float32 with 10 bits of
    mantissa.
    """
    device = _device()
    return {
        "bitfleet": __version__,
        "mlx": metadata.version("mlx"),
        "diffusionkit": metadata.version("diffusionkit"),
        "numpy": metadata.version("numpy"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "os": _operating_system(),
        "device": device.get("device_name", "unknown"),
        "architecture": device.get("architecture", "unknown"),
        "tf32": "off" if os.environ.get("MLX_ENABLE_TF32") == "0" else "allowed",
    }


def installed_versions() -> dict[str, str]:
    """Of this program and what it runs on, without importing MLX: known before the first job."""
    found = {"bitfleet": __version__, "python": platform.python_version(), "os": _operating_system()}
    with suppress(metadata.PackageNotFoundError):
        found["mlx"] = metadata.version("mlx")
    return found | {"protocol": str(PROTOCOL)}


def _device() -> dict[str, str]:
    import mlx.core as mx

    return {name: str(value)[:200] for name, value in mx.device_info().items()}


def _operating_system() -> str:
    release = platform.mac_ver()[0]
    return f"macOS {release}" if release else f"{platform.system()} {platform.release()}"


def require_mlx() -> None:
    """Check quickly, without importing it, that MLX is installed.

    Raises:
        ModelUnavailableError: mlx or diffusionkit is not installed.
    """
    for package in ("mlx", "diffusionkit"):
        if importlib.util.find_spec(package) is None:
            raise ModelUnavailableError(
                f"{package} is not installed on this machine; in bitfleet's folder: pip install '.[worker]'"
            )
