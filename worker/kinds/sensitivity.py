"""Sensitivity: one layer at one bit width, measured by the exact engine."""

from typing import TYPE_CHECKING

from shared.kinds.sensitivity import SensitivityTask
from worker.kinds.lent import Lent

if TYPE_CHECKING:
    from worker.engine.exact import ExactEngine


def run(task: SensitivityTask, lent: Lent) -> bytes:
    """Measure, on the engine that the tasks of one sensitivity run share."""
    lent.family.keep_only("transformer")
    engine = lent.engine_slot.get(f"exact {task.sensitivity.id}", lambda: _new_engine(task, lent))
    return engine.measure(task.layer, task.bits, check=lent.check, until=task.sensitivity.until).to_bytes()


def _new_engine(task: SensitivityTask, lent: Lent) -> "ExactEngine":
    from worker.engine.exact import ExactEngine

    return ExactEngine(
        lent.family,
        lent.samples(task.sensitivity),
        cfg_weight=task.run.cfg_weight,
        group_size=task.sensitivity.group_size,
        memory_limit=lent.memory_share,
        compute=task.sensitivity.compute,
    )
