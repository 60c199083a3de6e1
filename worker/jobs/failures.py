"""Kinds of errors in a job, by what has to follow from them."""

import sys
import traceback

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.errors import (
    ModelUnavailableError,
    RunMismatchError,
    ShardCorruptError,
    StoreTroubleError,
    TaskRefusedError,
    WrongStoreError,
)

# This machine can't, another one may: the job goes back, the worker leaves.
NOT_ON_THIS_MACHINE = (ModelUnavailableError, RunMismatchError, WrongStoreError)
# Redis or store are full or away: no attempt of the job is counted for it, and the next waits a little.
NOT_THE_JOBS_FAULT = (OutOfMemoryError, RedisConnectionError, RedisTimeoutError, StoreTroubleError)
# No machine ever will: trying again is of no use.
HOPELESS = (TaskRefusedError, ShardCorruptError)

REDIS_IS_FULL = (
    "Redis is full (its maxmemory is reached): run `producer collect` to empty the relay, or give Redis "
    "more memory; nothing is lost, this worker goes on by itself"
)


def is_metal_error(error: BaseException | None) -> bool:
    """Whether MLX says that the GPU failed; what it computes afterwards is not to be trusted."""
    return isinstance(error, RuntimeError) and "[METAL]" in str(error)


def traceback_text(error: BaseException | None) -> str:
    """All of it, for the history."""
    return "".join(traceback.format_exception(error)) if error else str(sys.exc_info()[1])
