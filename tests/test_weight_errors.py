"""Weight errors are those of MLX's own quantization; bytes are those of what it packs."""

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.random_mmdit import as_family, random_pipeline, sd3_config
from shared.kinds.weights import WeightsShard
from shared.plan import Choice
from worker.engine import row_slices
from worker.engine.layers import get_weight
from worker.engine.packed_candidates import PackedCandidates
from worker.engine.quantize import quantize_layer
from worker.engine.weight_errors import weight_errors

CHOICES = tuple(Choice(bits=bits, group_size=size) for bits in (2, 3, 8) for size in (32, 64))


def test_every_candidate_of_every_layer() -> None:
    family = as_family(random_pipeline(sd3_config(text_dim=96)))
    told: list[str] = []
    shard = weight_errors(family, CHOICES, told.append)
    assert told[0] == f"weights: 0 of {len(family.layers)} layers"
    assert len(told) == len(family.layers)
    for row, layer in enumerate(family.layers):
        for column, choice in enumerate(CHOICES):
            if layer.path == "context_embedder" and choice.group_size == 64:
                assert not shard.measurable[row, column]
                assert shard.squared_error[row, column] == shard.stored_bytes[row, column] == 0
                continue
            assert shard.measurable[row, column]
            candidate = quantize_layer(
                family.transformer, layer.path, bits=choice.bits, group_size=choice.group_size
            )
            assert shard.squared_error[row, column] == candidate.squared_error
            assert shard.squared_norm[row] == candidate.squared_norm
            size = layer.shape[0] * layer.shape[1]
            assert 8 * shard.stored_bytes[row, column] == candidate.bits_per_weight * size
    again = WeightsShard.from_bytes(shard.to_bytes())
    assert all(np.array_equal(getattr(again, name), getattr(shard, name)) for name in shard._layout)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_stored_bytes_are_what_mlx_packs(bits: int, group_size: int) -> None:
    weight = get_weight(as_family(random_pipeline(sd3_config(hidden=128))).transformer, "final_layer.linear")
    packed = mx.quantize(weight.astype(mx.float16), bits=bits, group_size=group_size)
    choice = Choice(bits=bits, group_size=group_size)
    outputs, inputs = weight.shape
    assert choice.stored_bytes((outputs, inputs)) == sum(array.nbytes for array in packed)


def test_slices_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    family = as_family(random_pipeline(sd3_config()))
    packed = PackedCandidates(family.transformer, keep=True)
    whole = {layer.path: packed.difference(layer.path, CHOICES[0]) for layer in family.layers}
    errors = weight_errors(family, CHOICES)
    monkeypatch.setattr(row_slices, "SLICE_WEIGHTS", 24 * 64)
    for keep in (False, True):
        packed = PackedCandidates(family.transformer, keep=keep)
        for _ in range(2):
            for path, delta in whole.items():
                parts = list(packed.differences(path, CHOICES[0]))
                assert len(parts) > 1 or len(delta) <= 24
                assert np.array_equal(np.array(mx.concatenate([part for _, part in parts])), np.array(delta))
    sliced = weight_errors(family, CHOICES)
    np.testing.assert_allclose(sliced.squared_error, errors.squared_error, rtol=1e-12)
    np.testing.assert_allclose(sliced.squared_norm, errors.squared_norm, rtol=1e-12)
