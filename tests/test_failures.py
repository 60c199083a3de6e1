"""Errors as MLX, Metal and the system word them, and whose fault each is taken to be."""

import errno

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.errors import (
    InputError,
    MachineTooSmallError,
    ModelUnavailableError,
    RunMismatchError,
    StoreTroubleError,
    TaskRefusedError,
    WrongStoreError,
)
from worker.jobs.failures import explain, is_metal_error, is_the_machines

COMMAND_BUFFER = "[METAL] Command buffer execution failed: "

# MLX's allocators (backend/metal/allocator.cpp, backend/common and its successors).
NO_MEMORY = [
    "[metal::malloc] Attempting to allocate 48736917632 bytes which is greater than the maximum allowed "
    "buffer size of 30150672384 bytes.",
    "[metal::malloc] Resource limit (499000) exceeded.",
    "[malloc] Unable to allocate 1073741824 bytes.",
    "[malloc_or_wait] Unable to allocate 1073741824 bytes.",
]
# Metal's own words, as MLX passes them on.
NO_GPU_MEMORY = [
    COMMAND_BUFFER + "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
    COMMAND_BUFFER + "Insufficient Memory",
]
TOO_LONG = [
    COMMAND_BUFFER
    + "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
    COMMAND_BUFFER + "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
]
GPU_FAILED = [
    COMMAND_BUFFER + "Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)",
    COMMAND_BUFFER + "Caused GPU Address Fault Error (0000000b:kIOGPUCommandBufferCallbackErrorPageFault)",
    COMMAND_BUFFER + "Invalid Resource (00000009:kIOGPUCommandBufferCallbackErrorInvalidResource)",
    COMMAND_BUFFER + "Discarded (victim of GPU error/recovery) "
    "(00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)",
    COMMAND_BUFFER + "Ignored (for causing prior/excessive GPU errors) "
    "(00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)",
]


def raised_from(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("text", [*NO_MEMORY, *NO_GPU_MEMORY])
def test_out_of_memory_is_the_machines(text: str) -> None:
    assert is_the_machines(RuntimeError(text))
    line = explain(RuntimeError(text))
    assert line.startswith("out of memory (")
    assert line.endswith("; close other programs, or run fewer workers here")


@pytest.mark.parametrize("text", TOO_LONG)
def test_a_gpu_that_was_held_for_too_long_is_the_machines(text: str) -> None:
    assert is_the_machines(RuntimeError(text))
    assert explain(RuntimeError(text)).startswith(
        "macOS stopped a computation that held the GPU for too long"
    )


@pytest.mark.parametrize("text", [*NO_GPU_MEMORY, *TOO_LONG, *GPU_FAILED])
def test_an_error_of_the_gpu_ends_the_process(text: str) -> None:
    assert is_metal_error(RuntimeError(text))


@pytest.mark.parametrize("text", GPU_FAILED)
def test_a_gpu_that_failed_otherwise_costs_an_attempt(text: str) -> None:
    assert not is_the_machines(RuntimeError(text))


@pytest.mark.parametrize("text", NO_MEMORY)
def test_an_allocation_that_was_refused_leaves_the_process_whole(text: str) -> None:
    assert not is_metal_error(RuntimeError(text))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOSPC, "No space left on device", "/tmp/bitfleet-states-1/0.safetensors"),
        OSError(errno.EDQUOT, "Disc quota exceeded"),
        # As safetensors words it.
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[metal::load_device] No Metal device available"),
        ModelUnavailableError("a file is missing"),
        MachineTooSmallError("needs 19 GB"),
        RunMismatchError("other files"),
        WrongStoreError("another store"),
        raised_from(ModelUnavailableError("can't be read"), RuntimeError(NO_MEMORY[0])),
        raised_from(ValueError("while evaluating"), MemoryError()),
    ],
)
def test_what_else_is_the_machines(error: Exception) -> None:
    assert is_the_machines(error)
    assert not is_metal_error(error)
    assert "\n" not in explain(error)
    assert explain(error)


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError("[matmul] Last dimension of first input with shape (2,3) must match second to last"),
        ValueError("[reshape] Cannot reshape array of size 2147491840 into shape (-2147475456)."),
        # A word is no message: only MLX's own errors speak of its memory.
        ValueError("[metal::malloc]"),
        KeyError("Insufficient Memory"),
        OSError(errno.ENOENT, "No such file or directory"),
        OSError("no errno"),
        TaskRefusedError("never"),
        InputError("no such model"),
        RedisConnectionError("away"),
        # A disk of the store's is the store's.
        raised_from(StoreTroubleError("the disk of the share is full"), OSError(errno.ENOSPC, "full")),
    ],
)
def test_what_is_not(error: Exception | None) -> None:
    assert not is_the_machines(error)
    assert not is_metal_error(error)


def test_the_cause_is_told_not_what_was_made_of_it() -> None:
    error = raised_from(
        ModelUnavailableError("sd3: a downloaded file can't be read; delete it from the cache"),
        RuntimeError(f"{NO_MEMORY[1]}\nat somewhere"),
    )
    assert explain(error) == (
        "out of memory ([metal::malloc] Resource limit (499000) exceeded); "
        "close other programs, or run fewer workers here"
    )
    disk = OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
    assert explain(disk) == "the disk is full ([Errno 28] No space left on device: '/tmp/x'); make room on it"


def test_a_chain_that_bites_its_tail_ends() -> None:
    error = ValueError("round")
    error.__cause__ = raised_from(ValueError("about"), error)
    assert not is_the_machines(error)
