"""What one backward trajectory says of every layer, read off step by step and kept so that it can go on.

For each layer a count sketch of the sum of G_n, and the products of G_n with the dW of some candidates; both
by third of the steps.
"""

from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx
import numpy as np

from shared.layout.npz import Array
from shared.metrics import BUCKETS, bucket_of
from shared.plan import Choice
from worker.engine.attention import few_heads_at_a_time
from worker.engine.backward_trajectory import StepPuller, probe_of
from worker.engine.count_sketch import CountSketch
from worker.engine.memory import TrajectoryPlan
from worker.engine.packed_candidates import PackedCandidates, is_measurable
from worker.engine.progress import Found, KeptProgress
from worker.engine.trajectory import Trajectory
from worker.families.family import Family

THIRDS = len(BUCKETS)


class ProbedTrajectory:
    """Reads backward trajectories of one loaded model, one image after the other."""

    def __init__(
        self,
        family: Family,
        candidates: Mapping[str, Sequence[Choice]],
        *,
        cfg_weight: float,
        buckets: int,
        plan: TrajectoryPlan,
    ) -> None:
        """Nothing is computed yet.

        Args:
            family: the loaded model; its transformer must not be quantized.
            candidates: by layer, those whose products are wanted; 0 where not measurable.
            cfg_weight: that of the run; 0 for none.
            buckets: of the count sketches; 0 for none.
            plan: how memory is spent.
        """
        self._family, self._candidates, self._cfg_weight = family, candidates, cfg_weight
        self._plan = plan
        self._packed = PackedCandidates(family.transformer, keep=plan.keep_packed)
        self._measurable = {
            (layer, choice)
            for layer, choices in candidates.items()
            for choice in choices
            if is_measurable(family.transformer, layer, choice)
        }
        self._rows = {layer.path: row for row, layer in enumerate(family.layers)}
        self._buckets = buckets
        self._sketches = {
            layer.path: CountSketch(layer.shape, buckets, seed=row)
            for row, layer in enumerate(family.layers)
            if buckets
        }

    def measure(
        self,
        trajectory: Trajectory,
        *,
        probe_seed: int,
        image_index: int,
        progress: KeptProgress | None = None,
        check: Callable[[str], None] = lambda progress: None,
    ) -> Found:
        """Pull one probe of an image's final latent back through all of its steps.

        Args:
            trajectory: of the image.
            probe_seed: seeds the probe, with the image's index.
            image_index: of the image.
            progress: where it is kept after each step; what is there already is gone on from.
            check: told the progress between blocks; may raise to stop.
        """
        steps = len(trajectory.x) - 1
        found = self._start(trajectory, probe_seed, image_index)
        kept = progress.read() if progress else None
        if kept is not None and kept.fits(found):
            found = kept
        with few_heads_at_a_time(self._family.transformer, self._plan.heads_at_once):
            puller = StepPuller(self._family, trajectory, self._cfg_weight)
            while found.steps_left:
                self._pull_step(puller, trajectory, found, check, steps)
                if progress:
                    progress.write(found)
        return found

    def _pull_step(
        self,
        puller: StepPuller,
        trajectory: Trajectory,
        found: Found,
        check: Callable[[str], None],
        steps: int,
    ) -> None:
        step = int(found.steps_left) - 1
        third = BUCKETS.index(bucket_of(step, steps))
        cotangent = puller.pull(
            trajectory,
            step,
            mx.array(found.cotangent),
            lambda layer, gradient: self._read(layer, gradient, third, found),
            lambda parts: check(f"step {step + 1}/{steps} backward, {parts} parts to go"),
        )
        found.cotangent, found.steps_left = np.array(cotangent), np.array(step)
        found.cotangent_norm[step] = np.linalg.norm(found.cotangent.astype(np.float64))

    def _start(self, trajectory: Trajectory, probe_seed: int, image_index: int) -> Found:
        steps, layers = len(trajectory.x) - 1, len(self._rows)
        probe = np.array(probe_of(probe_seed, image_index, trajectory.x[-1].shape))
        norms = np.zeros(steps + 1)
        norms[steps] = np.sqrt(probe.size)
        most = max((len(choices) for choices in self._candidates.values()), default=0)
        return Found(
            steps_left=np.array(steps),
            cotangent=probe,
            cotangent_norm=norms,
            sketches=np.zeros((layers, THIRDS, self._buckets), np.float32),
            products=np.zeros((layers, most, THIRDS)),
            reached=np.zeros(layers, bool),
        )

    def _read(self, layer: str, gradient: mx.array, third: int, found: Found) -> None:
        row = self._rows[layer]
        found.reached[row] |= bool(gradient.any().item())
        if self._buckets:
            found.sketches[row, third] += self._sketches[layer].of(gradient)
        for column, choice in enumerate(self._candidates.get(layer, ())):
            if (layer, choice) not in self._measurable:
                continue
            for rows, delta in self._packed.differences(layer, choice):
                by_output = (gradient[rows] * delta).sum(axis=-1)
                found.products[row, column, third] += np.array(by_output, np.float64).sum()


def squared_norms(sketches: Array) -> Array:
    """||sum of G_n||^2 (L, 4) of the thirds and of all steps, from sketches (L, 3, B)."""
    whole = sketches.sum(axis=1, keepdims=True)
    squares: Array = np.square(np.concatenate([sketches, whole], axis=1), dtype=np.float64).sum(axis=-1)
    return squares


def with_whole(parts: Array) -> Array:
    """(..., 4) of (..., 3): the thirds, and their sum."""
    return np.concatenate([parts, parts.sum(axis=-1, keepdims=True)], axis=-1)
