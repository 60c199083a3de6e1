"""Weights: how far every candidate is from its layer's weight, without running the model."""

from shared.kinds.weights import WeightsTask
from worker.kinds.lent import Lent


def run(task: WeightsTask, lent: Lent) -> bytes:
    """Quantize all layers in all ways."""
    from worker.engine.weight_errors import weight_errors

    lent.family.keep_only("transformer")
    return weight_errors(lent.family, task.candidates, lent.check).to_bytes()
