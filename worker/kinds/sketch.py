"""Sketch: all layers at all bit widths to first order, on one sample."""

from typing import TYPE_CHECKING

from shared.kinds.sketch import SketchTask
from worker.kinds.lent import Lent

if TYPE_CHECKING:
    from worker.engine.sketch import SketchEngine


def run(task: SketchTask, lent: Lent) -> bytes:
    """Sketch, on the engine that the tasks of one sensitivity run share."""
    lent.family.keep_only("transformer")
    key = f"sketch {task.sensitivity.id} {task.bits}"
    engine = lent.engine_slot.get(key, lambda: _new_engine(task, lent))
    return engine.measure(task.sample, task.probe_batch, task.probes, lent.check).to_bytes()


def _new_engine(task: SketchTask, lent: Lent) -> "SketchEngine":
    from worker.engine.sketch import SketchEngine

    return SketchEngine(
        lent.family,
        lent.samples(task.sensitivity),
        cfg_weight=task.run.cfg_weight,
        group_size=task.sensitivity.group_size,
        bits=task.bits,
        memory_limit=lent.memory_share,
    )
