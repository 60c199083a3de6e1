"""Sketch: all layers at all bit widths to first order, on one sample."""

from shared.kinds.sketch import SketchTask
from worker.kinds.lent import Lent


def run(task: SketchTask, lent: Lent) -> bytes:
    """Sketch, on the engine that the tasks of one sensitivity run share."""
    from worker.engine.sketch import SketchEngine

    lent.family.keep_only("transformer")
    key = f"sketch {task.sensitivity.id} {task.bits}"
    engine = lent.engine(key, SketchEngine, task, bits=task.bits)
    return engine.measure(task.sample, task.probe_batch, task.probes, lent.check).to_bytes()
