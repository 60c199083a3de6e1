"""The exact engine: runs the model with one quantized weight, from the block where that weight matters.

A change in block k changes nothing before block k. So for each micro-batch of samples the engine keeps the
state that enters the current block, and the reference output. Every candidate starts from that state. When
tasks come in the order of the forward pass, the state moves through the model once; a task out of order gives
the same result, and costs the way back to its block.

All is computed in float32. Weights and candidates keep the model's dtype, and MLX widens them when it
multiplies. In 16 bits a changed weight would change every rounding after it, and a small error would be lost
among these.
"""

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from shared.errors import TaskRefusedError
from shared.kinds.sensitivity import SensitivityShard
from shared.layout.npz import Array
from shared.layout.sample_set import SampleSet
from shared.runs import Compute
from worker.engine.batches import (
    Batch,
    batch_forward,
    guided_velocity,
    rows_per_sample,
    split_samples,
)
from worker.engine.layers import get_weight
from worker.engine.memory import plan_memory, spare_memory
from worker.engine.metrics import METRICS, compare, is_tight
from worker.engine.noise import change_last_bit, floor_layers, part_of
from worker.engine.pass_memory import measure_pass
from worker.engine.quantize import Candidate, quantize_layer, swapped
from worker.engine.reference import check_reference
from worker.engine.replay import START, Forward, Replay
from worker.engine.states import KeptStates
from worker.families.family import Family

Check = Callable[[str], None]


def _no_check(_: str) -> None:
    pass


class ExactEngine:
    """Measures one (layer, bits) after another. The model's own weights are always put back."""

    def __init__(
        self,
        family: Family,
        samples: SampleSet,
        cfg_weight: float,
        group_size: int,
        memory_limit: int | None = None,
        *,
        compute: Compute = "float32",
    ) -> None:
        """Read the weights and run one pass of one sample, to measure its memory.

        Args:
            family: the loaded model; its transformer must not be quantized.
            samples: what to measure on.
            cfg_weight: that of the run; 0 for none.
            group_size: weights that share a scale.
            memory_limit: bytes for weights, states and passes; None for what the machine can spare.
            compute: run the model in float32, or in its own precision.

        Raises:
            RunMismatchError: the samples were made with another kind of cfg_weight.
            MachineTooSmallError: the limit doesn't hold the weights and one sample's pass.
        """
        self._family, self._transformer = family, family.transformer
        self._half = family.dtype.size == 2
        self._dtype: mx.Dtype = mx.float32 if compute == "float32" else family.dtype
        self._samples, self._cfg_weight, self._group_size = samples, cfg_weight, group_size
        self._rows = rows_per_sample(samples, cfg_weight)
        one = self._forward(Batch(index=0, rows=np.array([0])))
        self._replay = Replay(family.stages, family.after_blocks, one)
        # Where weights and activations differ in dtype MLX promotes, and all that follows is wider than x.
        self._computed = one().dtype
        spare_memory(self._transformer, memory_limit)
        one_pass = measure_pass(family, self._replay, one, self._computed)
        del one
        plan = plan_memory(family, one_pass, samples=len(samples), memory_limit=memory_limit)
        self.micro_batch = plan.micro_batch
        self._batches = split_samples(samples, plan.micro_batch)
        self._states = KeptStates(len(self._batches), in_memory=plan.keep_in_memory)
        self._references: dict[int, Array] = {}
        self._layers = [layer.path for layer in family.layers]
        self._floor_layer: dict[int, str] = {}
        self._noise: dict[tuple[int, int], Array] = {}
        self._alive: dict[str, bool] = {}

    def measure(
        self, layer: str, bits: int, check: Check = _no_check, *, until: float | None = None
    ) -> SensitivityShard:
        """Measure how much the guided velocity changes when this layer's weight is quantized.

        Args:
            layer: dotted path of an `nn.Linear`.
            bits: of a weight.
            check: told the progress between micro-batches; may raise to stop, and nothing is lost but this
                candidate.
            until: percent; stop early once the relative error's 95% interval is within that. The shard
                then holds fewer samples, a random draw of all.

        Raises:
            TaskRefusedError: the pair is not measurable.
            RunMismatchError: this model did not make these samples.
        """
        start = self._replay.entry_of(layer)
        candidate = quantize_layer(self._transformer, layer, bits=bits, group_size=self._group_size)
        label, done = f"{layer} at {bits} bits", 0
        measured: list[Batch] = []
        metrics: list[dict[str, Array]] = []
        noise: list[Array] = []
        for batch in self._batches:
            check(f"{label}: {done} of {len(self._samples)} samples")
            noise.append(self._noise_floor(batch, part_of(self._replay, start)))
            self._advance(batch, start)
            with swapped(self._transformer, layer, candidate.weight):
                velocity = self._velocity(batch, start)
            metrics.append(compare(velocity, self._references[batch.index]))
            measured.append(batch)
            done += len(batch.rows)
            if until is not None and self._is_tight(measured, metrics, until):
                break
        joined = {name: np.concatenate([part[name] for part in metrics]) for name in METRICS}
        joined["noise_squared_error"] = np.concatenate(noise)
        if not all(np.isfinite(values).all() for values in joined.values()):
            raise TaskRefusedError(f"not measurable: with {label} the model's output is no longer finite")
        dead = self._is_dead(layer, start, joined)
        return self._shard(np.concatenate([batch.rows for batch in measured]), joined, candidate, dead)

    def _advance(self, batch: Batch, start: int) -> None:
        """Move the kept state to the entry of block `start`, with the model's own weights."""
        if batch.index not in self._references:
            self._references[batch.index] = reference = self._velocity(batch, 0)
            check_reference(self._samples, batch.rows, reference, half_precision=self._half)
        if self._states.position(batch.index) > start:
            self._states.drop(batch.index)
        if self._states.position(batch.index) < start:
            state = self._states.get(batch.index)
            self._states.put(batch.index, self._replay.advance(self._forward(batch), state, start))

    def _velocity(self, batch: Batch, start: int) -> Array:
        """Return the guided velocity (S, H, W, C) float32, computed from the kept state with the weights
        now in place.
        """
        state = self._states.get(batch.index) if start else START
        velocity = self._replay.run_from(self._forward(batch), state)
        guided = guided_velocity(velocity, self._cfg_weight)
        mx.eval(guided)
        return np.array(guided)

    def _noise_floor(self, batch: Batch, part: int) -> Array:
        """Return the noise floor (S,): the squared error after the last bits of one layer changed, in this
        part of the model.
        """
        if part not in self._floor_layer:
            self._floor_layer[part] = self._live_floor_layer(part)
        if (batch.index, part) not in self._noise:
            self._noise[batch.index, part] = self._last_bit_error(batch, self._floor_layer[part])
        return self._noise[batch.index, part]

    def _live_floor_layer(self, part: int) -> str:
        """Return the first layer whose last bits change the output at all."""
        candidates = floor_layers(self._replay, self._layers, self._family.place, part)
        for layer in candidates:
            noise = self._last_bit_error(self._batches[0], layer)
            if noise.any():
                self._noise[self._batches[0].index, part] = noise
                return layer
        return candidates[0]

    def _last_bit_error(self, batch: Batch, layer: str) -> Array:
        start = self._replay.entry_of(layer)
        self._advance(batch, start)
        changed = change_last_bit(get_weight(self._transformer, layer).astype(self._computed))
        return self._squared_error(batch, start, layer, changed)

    def _squared_error(self, batch: Batch, start: int, layer: str, weight: mx.array) -> Array:
        with swapped(self._transformer, layer, weight):
            velocity = self._velocity(batch, start)
        squared_error: Array = compare(velocity, self._references[batch.index])["squared_error"]
        return squared_error

    def _is_tight(self, batches: list[Batch], metrics: list[dict[str, Array]], percent: float) -> bool:
        image = np.concatenate([self._samples.image[batch.rows] for batch in batches])
        error, reference = (
            np.concatenate([part[name] for part in metrics])
            for name in ("squared_error", "squared_reference")
        )
        return is_tight(error, reference, image, percent)

    def _is_dead(self, layer: str, start: int, metrics: dict[str, Array]) -> bool:
        """Return whether the output doesn't depend on the layer.

        A small error is not enough to say so: a random weight must change the output no more than the
        layer's own does.
        """
        if (metrics["squared_error"] > metrics["noise_squared_error"]).any():
            return False
        if layer not in self._alive:
            batch, weight = self._batches[0], get_weight(self._transformer, layer)
            spread = weight.astype(mx.float32).std() + 1
            other = 10 * mx.random.normal(weight.shape, key=mx.random.key(0)) * spread
            changed = self._squared_error(batch, start, layer, other.astype(weight.dtype))
            repeated = self._squared_error(batch, start, layer, weight)
            # Written so that NaN counts as a change.
            self._alive[layer] = not (changed <= repeated).all()
        return not self._alive[layer]

    def _forward(self, batch: Batch) -> Forward:
        return batch_forward(self._family, self._samples, batch, rows=self._rows, dtype=self._dtype)

    def _shard(
        self, rows: Array, metrics: dict[str, Array], candidate: Candidate, dead: bool
    ) -> SensitivityShard:
        order = np.argsort(rows)
        rows = rows[order]
        return SensitivityShard(
            image_index=self._samples.image_index[self._samples.image[rows]],
            step_index=self._samples.step_index[rows],
            **{name: values[order] for name, values in metrics.items()},
            output_size=np.array(self._samples.x[0].size),
            dead=np.array(dead),
            weight_squared_error=np.array(candidate.squared_error),
            weight_squared_norm=np.array(candidate.squared_norm),
            bits_per_weight=np.array(candidate.bits_per_weight),
        )
