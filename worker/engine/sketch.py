"""The sketch: how much each layer changes the output at each bit width, to first order, by backward passes.

For a random vector r of +-1 over the guided velocity v, one backward pass gives G = d<r, v>/dW of every
layer. With dW = W_quantized - W, <G, dW> is <r, dv> to first order in dW, and E_r <r, dv>^2 = ||dv||^2
(Hutchinson's estimator, 1990). The dW of every bit width are known, so one G serves them all.

The backward pass goes block by block. Each block is run again from the state that entered it. As many probes
as memory allows are pulled back through it together, and their G are multiplied with its dW before the next
probes or the next block. So memory holds one state per block, and the gradients of one block for some probes.
All is computed in float32, whatever the weights are stored in.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from shared.kinds.sketch import SketchShard
from shared.layout.npz import Array
from shared.layout.sample_set import SampleSet
from worker.engine.batches import (
    Batch,
    batch_forward,
    guided_velocity,
    rows_per_sample,
    unguided_cotangent,
)
from worker.engine.block_gradients import (
    largest_position,
    memory_of_a_probe,
    pull_back_by_block,
    record_states,
)
from worker.engine.deltas import Deltas
from worker.engine.memory import plan_sketch, spare_memory
from worker.engine.pass_memory import state_bytes
from worker.engine.reference import check_reference
from worker.engine.replay import Forward, Replay, State
from worker.families.family import Family

Check = Callable[[str], None]


def _no_check(_: str) -> None:
    pass


class SketchEngine:
    """Sketches one sample after another. The model's own weights are always put back."""

    def __init__(
        self,
        family: Family,
        samples: SampleSet,
        cfg_weight: float,
        group_size: int,
        bits: Sequence[int],
        memory_limit: int | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            family: the loaded model; its transformer must not be quantized.
            samples: what to measure on.
            cfg_weight: that of the run; 0 for none.
            group_size: weights that share a scale.
            bits: B bit widths, all that a shard is to hold.
            memory_limit: bytes; None for what the machine can spare. Decides whether dW are kept, and how
                many probes go back together.

        Raises:
            RunMismatchError: the samples were made with another kind of cfg_weight.
        """
        self._family, self._transformer = family, family.transformer
        self._half = family.dtype.size == 2
        self._samples, self._cfg_weight, self._bits = samples, cfg_weight, tuple(bits)
        self._rows = rows_per_sample(samples, cfg_weight)
        self._spare = spare_memory(self._transformer, memory_limit)
        self._layers = [layer.path for layer in family.layers]
        self._replay = Replay(family.stages, family.after_blocks, self._forward(0))
        self._deltas = Deltas(self._transformer, self._layers, self._bits, group_size)
        self._one_probe: int | None = None
        """Bytes that one probe takes on its way back through a block; None before the first measurement."""
        self.at_once = 1
        """How many probes the last measurement sent back together."""

    def measure(self, sample: int, probe_batch: int, probes: int, check: Check = _no_check) -> SketchShard:
        """Compute <G, dW> of every layer and bit width for one batch of probes.

        Args:
            sample: place in the sample set.
            probe_batch: seeds the probes, with the sample.
            probes: P, how many.
            check: told the progress between blocks; may raise to stop.

        Raises:
            RunMismatchError: this model did not make these samples.
        """
        forward = self._forward(sample)
        states, output = record_states(self._replay, forward)
        self._plan(probes, forward, states)
        velocity = np.array(guided_velocity(output, self._cfg_weight))
        check_reference(self._samples, np.array([sample]), velocity, half_precision=self._half)
        # <G, dW> (B, P) of each layer, and a last row that is not 0 where G is not all zeros.
        found = {layer: np.zeros((len(self._bits) + 1, probes)) for layer in self._layers}
        parts = len(states)
        pull_back_by_block(
            self._replay,
            forward,
            states,
            transformer=self._transformer,
            layers=self._layers,
            cotangent=unguided_cotangent(
                probe_signs(sample, probe_batch, probes, velocity.shape[1:]), self._cfg_weight
            ),
            at_once=self.at_once,
            receive=lambda first, gradients: self._contract(first, gradients, found),
            check=lambda left: check(f"sketch of sample {sample}: {left} of {parts} blocks to go"),
        )
        return self._shard(sample, velocity, found)

    def _plan(self, probes: int, forward: Forward, states: list[State]) -> None:
        """Plan with what one probe takes; that is measured once, on the block that has most weights."""
        if self._one_probe is None:
            self._one_probe = memory_of_a_probe(
                self._replay,
                forward,
                states,
                transformer=self._transformer,
                layers=self._layers,
                position=largest_position(self._replay, self._family.layers),
            )
        sizes = [state_bytes(state) for state in states]
        plan = plan_sketch(
            self._family,
            states=sum(sizes),
            cotangent=max(sizes),
            one_probe=self._one_probe,
            probes=probes,
            widths=len(self._bits),
            spare_bytes=self._spare,
        )
        self.at_once = plan.at_once
        self._deltas.keep(plan.keep_deltas)

    def _forward(self, sample: int) -> Forward:
        batch = Batch(index=0, rows=np.array([sample]))
        return batch_forward(self._family, self._samples, batch, rows=self._rows, dtype=mx.float32)

    def _contract(self, first: int, gradients: dict[str, mx.array], found: dict[str, Array]) -> None:
        """Add the products of some probes to `found`, from column `first` on."""
        for layer in list(gradients):
            gradient = gradients.pop(layer)
            flat = gradient.reshape(len(gradient), -1)
            products = found[layer][:, first : first + len(flat)]
            if self._deltas.is_measurable(layer):
                for row, bits in enumerate(self._bits):
                    products[row] += np.array(mx.matmul(flat, self._deltas.of(layer, bits)))
            products[-1] += products.any() or flat.any().item()

    def _shard(self, sample: int, velocity: Array, found: dict[str, Array]) -> SketchShard:
        products = np.stack([found[layer] for layer in self._layers])
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


def probe_signs(sample: int, probe_batch: int, probes: int, shape: Sequence[int]) -> mx.array:
    """Return P probes (P, *shape) of +-1 in float32, the same on every machine."""
    signs = np.random.default_rng([sample, probe_batch]).integers(0, 2, (probes, *shape), np.int8)
    return mx.array(2 * signs - 1).astype(mx.float32)
