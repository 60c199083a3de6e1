"""Checks of Python, the operating system and MLX. They import neither MLX nor a model."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from shared.doctor.check import Check, ok
from shared.supported import OLDEST_MACOS, PYTHONS

OLDEST_MLX = (0, 32, 4)


def check_python() -> Iterator[Check]:
    """Check the version of Python, and that it is no Intel build on an Apple chip."""
    oldest, newest = PYTHONS
    version = platform.python_version()
    machine = platform.machine()
    if sys.platform == "darwin" and machine != "arm64":
        yield Check(
            name="Python",
            outcome="failed",
            found=f"Python {version} for {machine}" + (", run by Rosetta" if _is_translated() else ""),
            cure="install a Python for arm64 (`brew install python@3.12`), and make the environment with it",
        )
    elif not oldest <= sys.version_info[:2] <= newest:
        supported = f"{oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}"
        yield Check(
            name="Python",
            outcome="warning" if sys.version_info[:2] > newest else "failed",
            found=f"Python {version}; the tests run with {supported}",
            cure=f"make the environment anew with Python {newest[0]}.{newest[1]}",
        )
    else:
        yield ok("Python", f"Python {version} for {machine}")


def _is_translated() -> bool:
    found = subprocess.run(
        ["sysctl", "-n", "sysctl.proc_translated"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() == "1"


def check_system() -> Iterator[Check]:
    """Check the version of macOS; any Linux will do."""
    release = platform.mac_ver()[0]
    if not release:
        yield ok("System", f"{platform.system()} {platform.release()}")
    elif int(release.split(".")[0]) < OLDEST_MACOS:
        yield Check(
            name="System",
            outcome="failed",
            found=f"macOS {release}",
            cure=f"MLX needs macOS {OLDEST_MACOS} or newer; update macOS",
        )
    else:
        yield ok("System", f"macOS {release}")


def check_mlx_version() -> Iterator[Check]:
    """Check the version of MLX, and that float32 products keep all of their digits."""
    try:
        version = metadata.version("mlx")
    except metadata.PackageNotFoundError:
        yield Check(
            name="MLX",
            outcome="failed",
            found="mlx is not installed",
            cure="in bitfleet's folder: pip install '.[worker]'",
        )
        return
    parts = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    oldest = ".".join(map(str, OLDEST_MLX))
    if parts < OLDEST_MLX:
        yield Check(
            name="MLX",
            outcome="failed",
            found=f"mlx {version}; quantized products are wrong in it for large inputs",
            cure=f"pip install 'mlx>={oldest}'",
        )
    else:
        yield ok("MLX", f"mlx {version}")
    if os.environ.get("MLX_ENABLE_TF32") not in (None, "0"):
        yield Check(
            name="TF32",
            outcome="warning",
            found="MLX_ENABLE_TF32 is set: M5 chips then multiply float32 with 10 bits of mantissa",
            cure="unset MLX_ENABLE_TF32; workers set it to 0",
        )
