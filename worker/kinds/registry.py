"""How a worker runs each kind of task, found by the kind's name."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from shared.kinds.kind import Task
from shared.kinds.registry import NAMES, kind_of
from worker.kinds.lent import Lent

Run = Callable[[Any, Lent], bytes]
"""From a task of one kind to its shard, packed."""

RUNS: dict[str, Run] = {name: import_module(f"worker.kinds.{name}").run for name in NAMES}


def run_task(task: Task, lent: Lent) -> bytes:
    """Run a task of any kind, and return its shard."""
    return RUNS[kind_of(task).name](task, lent)
