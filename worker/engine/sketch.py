"""The sketch: how every layer suffers at every bit width, to first order, from a few backward passes.

For a random vector r of +-1 over the guided velocity v, one backward pass gives G = d<r, v>/dW of every
layer. With dW = W_quantized - W, <G, dW> is <r, dv> to first order in dW, and E_r <r, dv>^2 = ||dv||^2
(Hutchinson's estimator, 1990): for every bit width from the same G, since each dW is known.

The backward pass goes block by block. A block is run again from the state that entered it, all probes
are pulled back through it at once, and its G are contracted with its dW before the next block is
touched: what is held is one state a block, and the gradients of one block. All of it is float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from shared.kinds.sketch import SketchShard
from shared.layout.npz import Array
from shared.layout.sample_set import SampleSet
from worker.engine.backward import Arrays, pull_back
from worker.engine.batches import Batch, batch_inputs, guided_velocity, rows_per_sample
from worker.engine.deltas import Deltas
from worker.engine.memory import probes_at_once, spare_memory
from worker.engine.reference import check_reference
from worker.engine.steps import Inputs, State, Step, forward_steps, run_modulated, start_of
from worker.model.layers import get_weight, linear_layers
from worker.model.modulation import modulation_inputs

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
            memory_limit: bytes; None for what the machine can spare. Decides whether dW are kept, and
                how many probes go back together.

        Raises:
            RunMismatchError: the samples were made with another kind of cfg_weight.
            ModelUnavailableError: DiffusionKit has no right forward pass for this model.
        """
        self._mmdit: Any = pipeline.mmdit
        self._half = pipeline.activation_dtype.size == 2
        self._samples, self._cfg_weight, self._bits = samples, cfg_weight, tuple(bits)
        self._rows = rows_per_sample(samples, cfg_weight)
        self._layers = [layer.path for layer in linear_layers(self._mmdit)]
        steps = forward_steps(self._mmdit)
        self._embedders = tuple(layer for layer in self._layers if layer.startswith(("y_embed", "t_embed")))
        self._blocks = _divide(steps, [layer for layer in self._layers if layer not in self._embedders])
        spare = spare_memory(self._mmdit, memory_limit)
        self._deltas = Deltas(self._mmdit, self._layers, self._bits, group_size, spare // 2)
        _, height, width, _ = samples.x.shape
        self._at_once = probes_at_once(
            self._mmdit,
            rows=self._rows,
            tokens=height * width // self._mmdit.config.patch_size**2 + samples.conditioning.shape[2],
            largest_block=max(_size(self._mmdit, block.layers) for block in self._blocks),
            spare_bytes=spare // 2,
        )

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
        inputs = batch_inputs(
            self._samples, Batch(index=0, rows=np.array([sample])), rows=self._rows, dtype=mx.float32
        )
        modulation = modulation_inputs(self._mmdit, inputs.pooled, inputs.timesteps)
        states = self._forward(inputs, modulation)
        velocity = np.array(guided_velocity(states.pop()[0], self._cfg_weight))
        check_reference(self._samples, np.array([sample]), velocity, half_precision=self._half)
        cotangents = self._unguided(probe_signs(sample, probe_group, probes, velocity.shape[1:]))
        pulled = mx.zeros((probes, *modulation.shape))
        found: dict[str, tuple[Array, bool]] = {}
        for left in reversed(range(len(self._blocks))):
            check(f"sketch of sample {sample}: {left + 1} of {len(self._blocks)} blocks to go")
            cotangents, more = self._backward(
                self._blocks[left], states.pop(), modulation, inputs, cotangents, found
            )
            pulled = pulled + more
            mx.eval(cotangents, pulled)
        self._backward_embedders(inputs, pulled, found)
        return self._shard(sample, probes, velocity, found)

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
        found: dict[str, tuple[Array, bool]],
    ) -> tuple[Arrays, mx.array]:
        def run(primals: Arrays) -> Arrays:
            *entering, conditioned = primals
            return list(run_modulated(self._mmdit, block.steps, tuple(entering), inputs, conditioned))

        pulled, gradients = pull_back(
            self._mmdit, run, [*state, modulation], block.layers, cotangents, at_once=self._at_once
        )
        mx.eval(pulled, gradients)
        self._contract(gradients, found)
        return pulled[:-1], pulled[-1]

    def _backward_embedders(
        self, inputs: Inputs, pulled: mx.array, found: dict[str, tuple[Array, bool]]
    ) -> None:
        def run(_: Arrays) -> Arrays:
            return [modulation_inputs(self._mmdit, inputs.pooled, inputs.timesteps)]

        _, gradients = pull_back(self._mmdit, run, [], self._embedders, [pulled], at_once=self._at_once)
        self._contract(gradients, found)

    def _contract(self, gradients: dict[str, mx.array], found: dict[str, tuple[Array, bool]]) -> None:
        """Put <G, dW> (B, P) of each layer into `found`, and whether G is zero throughout."""
        for layer in list(gradients):
            gradient = gradients.pop(layer)
            deltas = self._deltas.of(layer)
            flat = gradient.reshape(gradient.shape[0], -1)
            products = mx.zeros((len(self._bits), len(flat))) if deltas is None else mx.matmul(deltas, flat.T)
            found[layer] = np.array(products, np.float64), not (products.any() or flat.any()).item()

    def _shard(
        self, sample: int, probes: int, velocity: Array, found: dict[str, tuple[Array, bool]]
    ) -> SketchShard:
        weights = self._deltas.weight_errors()
        return SketchShard(
            image_index=np.array(self._samples.image_index[self._samples.image[sample]]),
            step_index=np.array(self._samples.step_index[sample]),
            bits=np.array(self._bits),
            products=np.stack([found[layer][0] for layer in self._layers]),
            squared_reference=np.array((velocity.astype(np.float64) ** 2).sum()),
            output_size=np.array(velocity.size),
            dead=np.array([found[layer][1] for layer in self._layers]),
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


def _size(mmdit: Any, layers: Sequence[str]) -> int:
    return sum(get_weight(mmdit, layer).size for layer in layers)
