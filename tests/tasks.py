"""Small valid tasks and records, and waiting for what another process does."""

import hashlib
import time
from collections.abc import Callable
from typing import Any

from benchmarks.settings import run_settings
from shared.kinds.calibration import CalibrationTask
from shared.kinds.kind import Task
from shared.kinds.sensitivity import SensitivityTask
from shared.runs import SensitivitySettings
from shared.stores.records import Record

SETTINGS = run_settings(num_steps=4, prompts_sha256="a" * 64)
SENSITIVITY = SensitivitySettings(run_id=SETTINGS.id, sample_set_sha256="b" * 64, group_size=64)


def image_task(index: int = 0, *, prompt: str = "a red circle", **changes: Any) -> CalibrationTask:
    values = {"run": SETTINGS, "store_id": "relay", "image_index": index, "seed": index} | changes
    return CalibrationTask(prompt=prompt, **values)


def layer_task(layer: str = "final_layer.linear", bits: int = 4, **changes: Any) -> SensitivityTask:
    values = {"run": SETTINGS, "sensitivity": SENSITIVITY, "store_id": "relay"} | changes
    return SensitivityTask(layer=layer, bits=bits, **values)


def record_of(task: Task, shard: bytes, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "task": task,
        "sha256": hashlib.sha256(shard).hexdigest(),
        "size": len(shard),
        "fingerprint": "f" * 64,
        "versions": {"mlx": "0.32.4"},
        "host": "studio",
        "worker": "studio-1",
        "seconds": 1.5,
        "finished_at": "2026-01-02T03:04:05Z",
    }
    return Record(**values | changes)


def wait_until(
    condition: Callable[[], object], seconds: float = 20.0, tell: Callable[[], str] = lambda: ""
) -> None:
    """Return as soon as `condition` holds; fail after `seconds`, many times what it should take.

    `tell` says, on failure, what there is instead.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s; {tell()}"
        time.sleep(0.02)
