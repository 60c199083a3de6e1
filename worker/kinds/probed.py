"""What levels and confirm share: an image is drawn, and a probe of its final latent pulled back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shared.costs import TaskSize, drawing_bytes
from shared.kinds.confirm import ConfirmTask
from shared.kinds.levels import LevelsTask
from shared.layout.npz import Array
from shared.models import model_spec
from shared.plan import Choice
from worker.kinds.lent import Lent

if TYPE_CHECKING:
    from worker.engine.probed_trajectory import ProbedTrajectory
    from worker.engine.progress import Found, KeptProgress
    from worker.engine.trajectory import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One image's backward trajectory, and its final latent."""

    found: "Found"
    squared_reference: Array
    """() float64: ||x_N||^2."""
    output_size: Array
    """() integer: number of elements of x_N."""


def measure_trajectory(
    task: LevelsTask | ConfirmTask,
    lent: Lent,
    *,
    key: str,
    probe_seed: int,
    buckets: int,
    candidates: Callable[[], Mapping[str, Sequence[Choice]]],
) -> Measured:
    """Draw the image, or take it from where it was left, and pull its probe back.

    Args:
        task: names prompt, seed and image.
        lent: by the worker.
        key: of the engine; equal keys have equal buckets and candidates.
        probe_seed: seeds the probe, with the image's index.
        buckets: of the count sketches; 0 for none.
        candidates: gives by layer those whose products are wanted.
    """
    from worker.engine.progress import KeptProgress

    progress = None if lent.task_folder is None else KeptProgress(lent.task_folder)
    trajectory = _draw(task, lent, progress)
    lent.family.keep_only("transformer")
    engine = lent.engine_slot.get(key, lambda: _new_engine(task, lent, trajectory, buckets, candidates()))
    found = engine.measure(
        trajectory,
        probe_seed=probe_seed,
        image_index=task.image_index,
        progress=progress,
        check=lent.check,
    )
    final = np.array(trajectory.x[-1], np.float64)
    return Measured(
        found=found, squared_reference=np.array((final**2).sum()), output_size=np.array(final.size)
    )


def _draw(task: LevelsTask | ConfirmTask, lent: Lent, progress: "KeptProgress | None") -> "Trajectory":
    from worker.engine.trajectory import denoise

    trajectory = progress.read_drawing() if progress else None
    if trajectory is None:
        lent.family.hold("text_encoder", "transformer")
        trajectory = denoise(
            lent.family,
            task.prompt,
            seed=task.seed,
            num_steps=task.run.num_steps,
            cfg_weight=task.run.cfg_weight,
            latent_size=task.run.latent_size,
            check=lent.check,
        )
        if progress:
            progress.write_drawing(trajectory)
    return trajectory


def _new_engine(
    task: LevelsTask | ConfirmTask,
    lent: Lent,
    trajectory: "Trajectory",
    buckets: int,
    candidates: Mapping[str, Sequence[Choice]],
) -> "ProbedTrajectory":
    import mlx.core as mx

    from worker.engine.memory import plan_trajectory
    from worker.engine.probed_trajectory import ProbedTrajectory

    family, spec = lent.family, model_spec(task.run.model)
    size = TaskSize.of(task.run, spec, fused_attention=mx.metal.is_available())
    arrays = trajectory.conditioning.values()
    text_tokens = max((array.shape[1] for array in arrays if array.ndim > 2), default=0)
    return ProbedTrajectory(
        family,
        candidates,
        cfg_weight=task.run.cfg_weight,
        buckets=buckets,
        plan=plan_trajectory(
            family,
            family.pass_size(task.run.latent_size, text_tokens),
            rows=2 if task.run.cfg_weight > 0 else 1,
            candidates=candidates,
            drawing_bytes=drawing_bytes(spec, size),
            memory_limit=lent.memory_share,
        ),
    )
