"""How far every candidate is from its layer's weight, layer by layer: needs a model's weights and no pass."""

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from shared.kinds.weights import WeightsShard
from shared.plan import Choice
from worker.engine.layers import get_weight
from worker.engine.packed_candidates import PackedCandidates, is_measurable
from worker.engine.quantize import squared_rows
from worker.engine.row_slices import row_slices
from worker.families.family import Family


def weight_errors(
    family: Family, candidates: Sequence[Choice], check: Callable[[str], None] = lambda progress: None
) -> WeightsShard:
    """||dW||^2 and bytes of L layers by C candidates; some rows of one dW are held at a time.

    Args:
        family: the loaded model.
        candidates: C ways to quantize.
        check: told the progress before each layer; may raise to stop.
    """
    transformer, layers = family.transformer, family.layers
    packed = PackedCandidates(transformer, keep=False)
    shape = (len(layers), len(candidates))
    measurable = np.zeros(shape, bool)
    squared_error, squared_norm = np.zeros(shape), np.zeros(len(layers))
    stored_bytes = np.zeros(shape, np.int64)
    for row, layer in enumerate(layers):
        check(f"weights: {row} of {len(layers)} layers")
        weight = get_weight(transformer, layer.path)
        squared_norm[row] = sum(_squared(weight[rows].astype(mx.float32)) for rows in row_slices(layer.shape))
        for column, choice in enumerate(candidates):
            if is_measurable(transformer, layer.path, choice):
                measurable[row, column] = True
                squared_error[row, column] = sum(
                    _squared(delta) for _, delta in packed.differences(layer.path, choice)
                )
                stored_bytes[row, column] = choice.stored_bytes(layer.shape)
    return WeightsShard(
        bits=np.array([choice.bits for choice in candidates]),
        group_size=np.array([choice.group_size for choice in candidates]),
        measurable=measurable,
        squared_error=squared_error,
        squared_norm=squared_norm,
        stored_bytes=stored_bytes,
    )


def _squared(values: mx.array) -> float:
    return float(np.array(squared_rows(values), np.float64).sum())
