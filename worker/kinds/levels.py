"""Levels: one backward trajectory of one image tells how much a change of each layer moves its final latent."""

from typing import TYPE_CHECKING

import numpy as np

from shared.kinds.levels import LevelsShard, LevelsTask
from worker.kinds.lent import Lent
from worker.kinds.probed import measure_trajectory

if TYPE_CHECKING:
    from worker.engine.probed_trajectory import ProbedTrajectory


def run(task: LevelsTask, lent: Lent) -> bytes:
    """Draw the image and pull its probe back, on the engine that the tasks of these settings share."""
    from worker.engine.packed_candidates import is_measurable
    from worker.engine.probed_trajectory import squared_norms, with_whole

    settings, family = task.levels, lent.family
    layers = [layer.path for layer in family.layers]
    measurable = np.array(
        [[is_measurable(family.transformer, layer, choice) for choice in settings.candidates] for layer in layers]
    ).reshape(len(layers), len(settings.candidates))
    done = measure_trajectory(
        task,
        lent,
        key=f"levels {settings.id}",
        probe_seed=settings.probe_seed,
        buckets=settings.buckets,
        candidates=dict.fromkeys(layers, settings.candidates)
    )
    found = done.found
    weights = np.array([layer.shape[0] * layer.shape[1] for layer in family.layers])
    return LevelsShard(
        image_index=np.array(task.image_index),
        levels=squared_norms(found.sketches) / weights[:, None],
        products=with_whole(found.products),
        measurable=measurable,
        dead=~found.reached,
        cotangent_norm=found.cotangent_norm,
        squared_reference=done.squared_reference,
        output_size=done.output_size,
    ).to_bytes()
