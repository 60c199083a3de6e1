"""Confirm: the joint first-order error of a few quantized models, from one backward trajectory."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from shared.kinds.confirm import ConfirmShard, ConfirmTask
from shared.layout.npz import Array
from shared.plan import Choice, Variant, decode_variants
from worker.kinds.lent import Lent
from worker.kinds.probed import measure_trajectory

if TYPE_CHECKING:
    from worker.families.family import Family


def run(task: ConfirmTask, lent: Lent) -> bytes:
    """Draw the image and pull its probe back, on the engine that the tasks of these settings share."""
    variants = decode_variants(lent.blob(task.confirm.variants_sha256))
    choices = _choices(variants, lent.family)
    measured = measure_trajectory(
        task,
        lent,
        key=f"confirm {task.confirm.id}",
        probe_seed=task.confirm.probe_seed,
        buckets=0,
        candidates=lambda: choices,
    )
    return ConfirmShard(
        image_index=np.array(task.image_index),
        products=_by_variant(measured.found.products.sum(axis=-1), variants, choices, lent.family),
        squared_reference=measured.squared_reference,
        output_size=measured.output_size,
    ).to_bytes()


def _choices(variants: Sequence[Variant], family: "Family") -> Mapping[str, Sequence[Choice]]:
    """Each layer's different choices in all variants.

    Raises:
        TaskRefusedError: a variant names a layer that the model lacks, or that can't be quantized so.
    """
    from worker.engine.quantize import check_measurable

    for variant in variants:
        for layer, choice in variant.layers.items():
            check_measurable(family.transformer, layer, bits=choice.bits, group_size=choice.group_size)
    return {
        layer.path: sorted(
            {variant.layers[layer.path] for variant in variants if layer.path in variant.layers}
        )
        for layer in family.layers
    }


def _by_variant(
    products: Array,
    variants: Sequence[Variant],
    choices: Mapping[str, Sequence[Choice]],
    family: "Family",
) -> Array:
    """(V, L), of (L, C): each variant's own choice of a layer; 0 for a layer that it keeps."""
    by_variant = np.zeros((len(variants), len(products)))
    for row, layer in enumerate(family.layers):
        for number, variant in enumerate(variants):
            if layer.path in variant.layers:
                by_variant[number, row] = products[row, choices[layer.path].index(variant.layers[layer.path])]
    return by_variant
