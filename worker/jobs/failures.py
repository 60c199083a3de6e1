"""Kinds of errors in a job, by what has to follow from them.

| whose fault            | what follows                                                               |
|------------------------|----------------------------------------------------------------------------|
| this machine's         | no attempt is lost: the job goes to other machines, this one sets its like aside |
| Redis's or the store's | no attempt is lost: the job goes back, this worker waits a little          |
| the task's             | no machine tries it again                                                  |
| anything else          | an attempt is lost, and another one follows                                |

Beside that, an error of the GPU ends the process: what it computes afterwards is not to be trusted.
"""

import errno
import sys
import traceback
from collections.abc import Iterator

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.errors import (
    BitfleetError,
    MachineTooSmallError,
    ModelUnavailableError,
    RunMismatchError,
    ShardCorruptError,
    StoreTroubleError,
    TaskRefusedError,
    UnknownKindError,
    WrongStoreError,
)

# Redis or store are full or away: no attempt of the job is counted for it, and the next waits a little.
NOT_THE_JOBS_FAULT = (OutOfMemoryError, RedisConnectionError, RedisTimeoutError, StoreTroubleError)
# No machine ever will: trying again is of no use.
HOPELESS = (TaskRefusedError, ShardCorruptError)

REDIS_IS_FULL = (
    "Redis is full (its maxmemory is reached): run `producer collect` to empty the relay, or give Redis "
    "more memory; nothing is lost, this worker goes on by itself"
)

_NOT_ON_THIS_MACHINE = (
    ModelUnavailableError,
    RunMismatchError,
    UnknownKindError,
    WrongStoreError,
    MachineTooSmallError,
)

# What MLX's allocators and Metal say; the numbers differ. All of them come as plain RuntimeErrors.
_NO_MEMORY = (
    "[metal::malloc]",  # "Attempting to allocate N bytes which is greater than ...", "Resource limit (N) ..."
    "[malloc] Unable to allocate",
    "[malloc_or_wait] Unable to allocate",
    "Insufficient Memory",
    "kIOGPUCommandBufferCallbackErrorOutOfMemory",
)
# macOS stops a computation that held the GPU for too long: on a slow chip, or while somebody uses the screen.
_TOO_LONG = (
    "Impacting Interactivity",
    "kIOGPUCommandBufferCallbackErrorImpactingInteractivity",
    "GPU Timeout",
    "kIOGPUCommandBufferCallbackErrorTimeout",
)
_NO_GPU = ("[metal::load_device]", "[metal::Device] Unable to load", "No Metal device available")
_GPU_FAILED = ("[METAL]", "kIOGPUCommandBufferCallbackError")
_NO_DISK = (errno.ENOSPC, errno.EDQUOT)
_DISK_WORDS = ("No space left on device", "Disk quota exceeded", "Disc quota exceeded")


def is_the_machines(error: BaseException | None) -> bool:
    """Whether this machine can't do the task and another one may."""
    return isinstance(error, _NOT_ON_THIS_MACHINE) or _trouble(error) is not None


def is_metal_error(error: BaseException | None) -> bool:
    """Whether the GPU failed; what this process computes afterwards is not to be trusted."""
    return any(
        isinstance(cause, RuntimeError) and _says(cause, (*_GPU_FAILED, *_TOO_LONG))
        for cause in _causes(error)
    )


def explain(error: BaseException) -> str:
    """One line on why this machine can't, with what mends it."""
    trouble = _trouble(error)
    if trouble is None:
        return _first_line(error)
    what, cause, remedy = trouble
    return f"{what} ({_first_line(cause)}); {remedy}"


def _trouble(error: BaseException | None) -> tuple[str, BaseException, str] | None:
    """What is wrong with this machine, the error that says so, and what mends it; None if nothing is."""
    for cause in _causes(error):
        if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and _says(cause, _NO_MEMORY)):
            return "out of memory", cause, "close other programs, or run fewer workers here"
        if _is_no_disk(cause):
            return "the disk is full", cause, "make room on it"
        if isinstance(cause, RuntimeError) and _says(cause, _TOO_LONG):
            return (
                "macOS stopped a computation that held the GPU for too long",
                cause,
                "let nobody use its screen meanwhile, or give a smaller --memory-limit for smaller passes",
            )
        if isinstance(cause, RuntimeError) and _says(cause, _NO_GPU):
            return (
                "Metal doesn't work here",
                cause,
                "run the worker in a session with a GPU, install mlx again",
            )
    return None


def _is_no_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _NO_DISK:
        return True
    # Libraries that are written in Rust or C++ tell it in words only.
    return isinstance(error, Exception) and _says(error, _DISK_WORDS)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from: loading a model wraps what MLX says."""
    for _ in range(10):
        if error is None:
            return
        # Trouble of the store is the store's, a full disk of its machine included; ours are spoken for.
        if isinstance(error, BitfleetError) and not isinstance(error, ModelUnavailableError):
            return
        yield error
        error = error.__cause__


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    return any(text in str(error) for text in texts)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")


def traceback_text(error: BaseException | None) -> str:
    """All of it, for the history."""
    return "".join(traceback.format_exception(error)) if error else str(sys.exc_info()[1])
