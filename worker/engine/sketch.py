"""The sketch: how every layer suffers at every bit width, to first order, from a few backward passes.

For a random vector r of +-1 over the guided velocity v, one backward pass gives G = d<r, v>/dW of every
layer. With dW = W_quantized - W, <G, dW> is <r, dv> to first order in dW, and E_r <r, dv>^2 = ||dv||^2
(Hutchinson's estimator, 1990): for every bit width from the same G, since each dW is known.

The backward pass goes block by block. A block is run again from the state that entered it, as many probes as
fit are pulled back through it at once, and their G are contracted with its dW before the next probes or the
next block: what is held is one state a block, and the gradients of one block and some probes. All of it is
float32, whatever the weights are stored in.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from shared.kinds.sketch import SketchShard
from shared.layout.npz import Array
from shared.layout.sample_set import SampleSet
from worker.engine.backward import Arrays, Function, pull_back
from worker.engine.batches import Batch, batch_inputs, guided_velocity, rows_per_sample
from worker.engine.deltas import Deltas
from worker.engine.memory import plan_sketch, spare_memory
from worker.engine.reference import check_reference
from worker.engine.steps import Inputs, State, Step, forward_steps, run_modulated, start_of
from worker.model.layers import linear_layers
from worker.model.modulation import MODULATION_EMBEDDERS, modulation_inputs

Check = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Steps that are run again together, and the layers whose gradients they give."""

    steps: tuple[Step, ...]
    layers: tuple[str, ...]


def _no_check(_: str) -> None:
    pass


class SketchEngine:
    """Sketches one sample at a time with one loaded model, whose weights it always gives back."""

    def __init__(
        self,
        pipeline: Any,
        samples: SampleSet,
        cfg_weight: float,
        group_size: int,
        bits: Sequence[int],
        memory_limit: int | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            pipeline: DiffusionKit's, loaded; its `mmdit` must not be quantized.
            samples: what to measure on.
            cfg_weight: that of the run; 0 for none.
            group_size: weights that share a scale.
            bits: B bit widths, all that a shard is to hold.
            memory_limit: bytes; None for what the machine can spare. Decides whether dW are kept, and how
                many probes go back together.

        Raises:
            RunMismatchError: the samples were made with another kind of cfg_weight.
        """
        self._mmdit: Any = pipeline.mmdit
        self._half = pipeline.activation_dtype.size == 2
        self._samples, self._cfg_weight, self._bits = samples, cfg_weight, tuple(bits)
        self._rows = rows_per_sample(samples, cfg_weight)
        self._spare = spare_memory(self._mmdit, memory_limit)
        self._layers = [layer.path for layer in linear_layers(self._mmdit)]
        steps = forward_steps(self._mmdit)
        self._embedders = tuple(layer for layer in self._layers if layer.startswith(MODULATION_EMBEDDERS))
        self._blocks = _divide(steps, [layer for layer in self._layers if layer not in self._embedders])
        self._deltas = Deltas(self._mmdit, self._layers, self._bits, group_size)
        self.at_once = 1
        """Probes that the last measurement sent back together."""

    def measure(self, sample: int, probe_group: int, probes: int, check: Check = _no_check) -> SketchShard:
        """<G, dW> of every layer and bit width for the probes of one group.

        Args:
            sample: place in the sample set.
            probe_group: seeds the probes, with the sample.
            probes: P, how many.
            check: told the progress between blocks; may raise to stop.

        Raises:
            RunMismatchError: this model did not make these samples.
        """
        self._plan(probes)
        inputs = batch_inputs(
            self._samples, Batch(index=0, rows=np.array([sample])), rows=self._rows, dtype=mx.float32
        )
        modulation = modulation_inputs(self._mmdit, inputs.pooled, inputs.timesteps)
        states = self._forward(inputs, modulation)
        velocity = np.array(guided_velocity(states.pop()[0], self._cfg_weight))
        check_reference(self._samples, np.array([sample]), velocity, half_precision=self._half)
        cotangents = self._unguided(probe_signs(sample, probe_group, probes, velocity.shape[1:]))
        pulled = mx.zeros((probes, *modulation.shape))
        found: dict[str, list[Array]] = defaultdict(list)
        for left in reversed(range(len(self._blocks))):
            check(f"sketch of sample {sample}: {left + 1} of {len(self._blocks)} blocks to go")
            *cotangents, more = self._backward(
                self._blocks[left], states.pop(), modulation, inputs, cotangents, found
            )
            pulled = pulled + more
            mx.eval(pulled)
        self._backward_embedders(inputs, pulled, found)
        return self._shard(sample, velocity, found)

    def _plan(self, probes: int) -> None:
        _, height, width, _ = self._samples.x.shape
        plan = plan_sketch(
            self._mmdit,
            rows=self._rows,
            tokens=height * width // self._mmdit.config.patch_size**2 + self._samples.conditioning.shape[2],
            probes=probes,
            widths=len(self._bits),
            spare_bytes=self._spare,
        )
        self.at_once = plan.at_once
        self._deltas.keep(plan.keep_deltas)

    def _forward(self, inputs: Inputs, modulation: mx.array) -> list[State]:
        """The state that enters each block, then the velocity (rows, H, W, C)."""
        states: list[State] = [()]
        for block in self._blocks:
            states.append(run_modulated(self._mmdit, block.steps, states[-1], inputs, modulation))
            mx.eval(states[-1])
        return states

    def _unguided(self, signs: mx.array) -> Arrays:
        """Cotangent (P, rows, H, W, C) of the model's output, of (P, H, W, C) of the guided velocity."""
        if self._cfg_weight <= 0:
            return [signs[:, None]]
        return [mx.stack([self._cfg_weight * signs, (1 - self._cfg_weight) * signs], axis=1)]

    def _backward(
        self,
        block: _Block,
        state: State,
        modulation: mx.array,
        inputs: Inputs,
        cotangents: Arrays,
        found: dict[str, list[Array]],
    ) -> Arrays:
        """Cotangents of the state and of the modulation that entered the block."""

        def run(primals: Arrays) -> Arrays:
            *entering, conditioned = primals
            return list(run_modulated(self._mmdit, block.steps, tuple(entering), inputs, conditioned))

        return self._pull_back(run, [*state, modulation], block.layers, cotangents, found)

    def _backward_embedders(self, inputs: Inputs, pulled: mx.array, found: dict[str, list[Array]]) -> None:
        def run(_: Arrays) -> Arrays:
            return [modulation_inputs(self._mmdit, inputs.pooled, inputs.timesteps)]

        self._pull_back(run, [], self._embedders, [pulled], found)

    def _pull_back(
        self,
        function: Function,
        inputs: Arrays,
        layers: Sequence[str],
        cotangents: Arrays,
        found: dict[str, list[Array]],
    ) -> Arrays:
        """Cotangents (P, ...) of the inputs. The gradients of the weights never exist for all P together."""
        parts: list[Arrays] = []
        for start in range(0, len(cotangents[0]), self.at_once):
            some = [cotangent[start : start + self.at_once] for cotangent in cotangents]
            pulled, gradients = pull_back(self._mmdit, function, inputs, layers, some)
            mx.eval(pulled, gradients)
            self._contract(gradients, found)
            parts.append(pulled)
        if len(parts) == 1:
            return parts[0]
        joined = [mx.concatenate(list(same)) for same in zip(*parts, strict=True)]
        mx.eval(joined)
        return joined

    def _contract(self, gradients: dict[str, mx.array], found: dict[str, list[Array]]) -> None:
        """Add <G, dW> (B + 1, P) of each layer to `found`; the last row is 1 where G is not all zeros."""
        for layer in list(gradients):
            gradient = gradients.pop(layer)
            flat = gradient.reshape(len(gradient), -1)
            products = np.zeros((len(self._bits) + 1, len(flat)))
            if self._deltas.is_measurable(layer):
                for row, bits in enumerate(self._bits):
                    products[row] = np.array(mx.matmul(flat, self._deltas.of(layer, bits)))
            products[-1] = products.any() or flat.any().item()
            found[layer].append(products)

    def _shard(self, sample: int, velocity: Array, found: dict[str, list[Array]]) -> SketchShard:
        products = np.stack([np.concatenate(found[layer], axis=-1) for layer in self._layers])
        weights = self._deltas.weight_errors()
        return SketchShard(
            image_index=np.array(self._samples.image_index[self._samples.image[sample]]),
            step_index=np.array(self._samples.step_index[sample]),
            bits=np.array(self._bits),
            products=products[:, :-1],
            squared_reference=np.array((velocity.astype(np.float64) ** 2).sum()),
            output_size=np.array(velocity.size),
            dead=np.array(~products[:, -1].any(axis=-1)),
            measurable=weights.measurable,
            weight_squared_error=weights.squared_error,
            weight_squared_norm=weights.squared_norm,
            bits_per_weight=weights.bits_per_weight,
        )


def probe_signs(sample: int, probe_group: int, probes: int, shape: Sequence[int]) -> mx.array:
    """(P, *shape) of +-1 in float32, the same on every machine."""
    signs = np.random.default_rng([sample, probe_group]).integers(0, 2, (probes, *shape), np.int8)
    return mx.array(2 * signs - 1).astype(mx.float32)


def _divide(steps: Sequence[Step], layers: Sequence[str]) -> list[_Block]:
    """Steps by block, with the layers of each; what the modulation is made of lies before all blocks."""
    starts = {layer: steps[start_of(steps, layer)].block for layer in layers}
    return [
        _Block(
            steps=tuple(step for step in steps if step.block == number),
            layers=tuple(layer for layer in layers if starts[layer] == number),
        )
        for number in range(steps[-1].block + 1)
    ]
