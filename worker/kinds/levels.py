"""Levels: one backward trajectory tells how much a change of each layer moves an image's final latent."""

import numpy as np

from shared.kinds.levels import LevelsShard, LevelsTask
from worker.kinds.lent import Lent
from worker.kinds.probed import measure_trajectory


def run(task: LevelsTask, lent: Lent) -> bytes:
    """Draw the image and pull its probe back, on the engine that the tasks of these settings share."""
    from worker.engine.packed_candidates import is_measurable
    from worker.engine.probed_trajectory import squared_norms, with_whole

    settings, family = task.levels, lent.family
    measurable = np.array(
        [
            [is_measurable(family.transformer, layer.path, choice) for choice in settings.candidates]
            for layer in family.layers
        ]
    ).reshape(len(family.layers), len(settings.candidates))
    measured = measure_trajectory(
        task,
        lent,
        key=f"levels {settings.id}",
        probe_seed=settings.probe_seed,
        buckets=settings.buckets,
        candidates=lambda: dict.fromkeys([layer.path for layer in family.layers], settings.candidates),
    )
    found = measured.found
    weights = np.array([layer.shape[0] * layer.shape[1] for layer in family.layers])
    return LevelsShard(
        image_index=np.array(task.image_index),
        levels=squared_norms(found.sketches) / weights[:, None],
        products=with_whole(found.products),
        measurable=measurable,
        dead=~found.reached,
        cotangent_norm=found.cotangent_norm,
        squared_reference=measured.squared_reference,
        output_size=measured.output_size,
    ).to_bytes()
