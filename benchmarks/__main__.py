"""All benchmarks but the full-size one, one after the other: `make bench`."""

import subprocess
import sys

BENCHMARKS = ("jobs", "recovery", "calibration", "sensitivity", "precision")


def main() -> int:
    """Each in a process of its own, so that none inherits another's memory."""
    codes = [subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode for name in BENCHMARKS]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
