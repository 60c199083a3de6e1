"""Sensitivity: one layer at one bit width, measured by the exact engine."""

from shared.kinds.sensitivity import SensitivityTask
from worker.kinds.lent import Lent


def run(task: SensitivityTask, lent: Lent) -> bytes:
    """Measure, on the engine that the tasks of one sensitivity run share."""
    from worker.engine.exact import ExactEngine

    lent.family.keep_only("transformer")
    settings = task.sensitivity
    engine = lent.engine(f"exact {settings.id}", ExactEngine, task, compute=settings.compute)
    return engine.measure(task.layer, task.bits, check=lent.check, until=settings.until).to_bytes()
