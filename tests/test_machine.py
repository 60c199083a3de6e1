"""What a worker says of its machine, and what it makes sure of before MLX is there."""

import os

import msgspec
import pytest

from worker.service.machine import versions
from worker.service.options import ENVIRONMENT_NAME, WorkerOptions


@pytest.mark.parametrize(("value", "told"), [("0", "off"), ("1", "allowed"), (None, "allowed")])
def test_tf32_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch, value: str | None, told: str) -> None:
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    if value is not None:
        monkeypatch.setenv("MLX_ENABLE_TF32", value)
    assert versions.__wrapped__()["tf32"] == told


def test_all_that_could_change_a_result_is_told() -> None:
    found = versions()
    assert {"mlx", "numpy", "python", "platform", "os", "device", "architecture", "tf32"} <= found.keys()
    assert all(isinstance(value, str) and 0 < len(value) <= 200 for value in found.values())


def test_a_worker_process_starts_without_tf32_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    options = WorkerOptions(redis_url="redis://x")
    assert options.to_environment()["MLX_ENABLE_TF32"] == "0"
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    assert options.to_environment()["MLX_ENABLE_TF32"] == "1"


def test_a_process_that_replaces_another_is_of_the_same_start(monkeypatch: pytest.MonkeyPatch) -> None:
    options = WorkerOptions(redis_url="redis://x")
    again = msgspec.structs.replace(options, name="air-2")
    monkeypatch.setitem(os.environ, ENVIRONMENT_NAME, again.to_environment()[ENVIRONMENT_NAME])
    assert WorkerOptions.from_environment().start_id == options.start_id
    assert WorkerOptions(redis_url="redis://x").start_id != options.start_id
