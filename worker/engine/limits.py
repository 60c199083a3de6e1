"""How much memory a worker may use, and the refusal of what needs more."""

from pathlib import Path

import mlx.core as mx
from humanfriendly import format_size

from shared.errors import MachineTooSmallError

CACHE_SHARE = 4
"""MLX may keep one part in so many of the limit in unused buffers, ready for the next pass."""

_MEMINFO = Path("/proc/meminfo")


def default_memory_limit() -> int:
    """Return, in bytes, the working set that Metal recommends; on Linux what is available now, with our
    own arrays.
    """
    if mx.metal.is_available():
        return int(mx.device_info()["max_recommended_working_set_size"])
    return available_memory() + mx.get_active_memory() + mx.get_cache_memory()


def available_memory() -> int:
    """Return the bytes that Linux could give without swapping, by its own estimate."""
    for line in _MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise MachineTooSmallError(f"{_MEMINFO} doesn't say what is available; give --memory-limit")


def require_memory(what: str, needed: int, memory_limit: int | None) -> None:
    """Refuse a task that needs more memory than the limit.

    Args:
        what: needs it, for the message.
        needed: bytes, weights included.
        memory_limit: bytes; None for `default_memory_limit()`.

    Raises:
        MachineTooSmallError: more is needed than the limit.
    """
    limit = default_memory_limit() if memory_limit is None else memory_limit
    if needed > limit:
        raise MachineTooSmallError(
            f"{what} needs {format_size(needed)} of memory, this machine offers {format_size(limit)}; "
            "--memory-limit (or BITFLEET_MEMORY_LIMIT) to try all the same"
        )


def apply_limits(memory_limit: int) -> None:
    """Tell MLX the limit in bytes. Its wired limit is never set: wiring much memory can panic macOS 26.

    Beyond the limit MLX waits for running work before it takes more, and gives unused buffers back first.
    """
    mx.set_memory_limit(memory_limit)
    mx.set_cache_limit(memory_limit // CACHE_SHARE)
