"""A random probe of the final latent, pulled back through all steps of a trajectory.

The sampler is x_{n+1} = x_n + dt_n v(x_n) with dt_n = sigma_{n+1} - sigma_n and the guided velocity v. For a
vector r of +-1, lambda_N = r is the gradient of <r, x_N> by x_N; then the cotangent of v at step n is
dt_n lambda_{n+1}, and lambda_n = lambda_{n+1} + dt_n (dv/dx_n)^T lambda_{n+1}: the adjoint of the Euler step.
The same pull gives G_n, the gradient of <r, x_N> by each weight as it is used at step n.

A step goes back block by block, in float32 with the weights as they are stored: what is held is one state a
block, and one block's gradients.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from worker.engine.backward import Arrays, pull_back
from worker.engine.batches import unguided_cotangent
from worker.engine.block_gradients import record_states
from worker.engine.replay import Forward, Replay, State
from worker.engine.trajectory import Trajectory
from worker.families.family import Family

Receive = Callable[[str, mx.array], None]
"""Takes a layer and a gradient by its weight (outputs, inputs) float32, evaluated.

A layer of a block comes once a step; one that blocks share comes once for each, and its gradient is the sum.
"""


class StepPuller:
    """Pulls cotangents back through the steps of one family's trajectories."""

    def __init__(self, family: Family, trajectory: Trajectory, cfg_weight: float) -> None:
        """Learn the order of the blocks, by tracing one step of any trajectory.

        Raises:
            ModelUnavailableError: a pass calls no block of the stages, or one of them twice.
        """
        self._family, self._cfg_weight = family, cfg_weight
        self._layers = [layer.path for layer in family.layers]
        first = _rows(trajectory)
        self._replay = Replay(family.stages, family.after_blocks, self._forward_at(trajectory, 0, first))

    def pull(
        self,
        trajectory: Trajectory,
        step: int,
        cotangent: mx.array,
        receive: Receive,
        check: Callable[[int], None] = lambda parts_left: None,
    ) -> mx.array:
        """The gradient of <r, x_N> by what entered a step, (1, H, W, C) float32, evaluated.

        Args:
            trajectory: of the image.
            step: n, counted from 0.
            cotangent: lambda_{n+1} (1, H, W, C) float32, the gradient by what left the step.
            receive: told G_n, layer by layer; the gradients of a block are freed once all were told.
            check: told how many parts of the step are still to go, before each; may raise to stop.
        """
        dt = trajectory.sigmas[step + 1] - trajectory.sigmas[step]
        x = _rows(trajectory, step)
        states, _ = record_states(self._replay, self._forward_at(trajectory, step, x))
        by_output = unguided_cotangent(dt * cotangent, self._cfg_weight)
        by_x = mx.zeros_like(x)
        shared = [layer for layer in self._layers if self._replay.block_of(layer) is None]
        cotangents: Arrays = [by_output]
        while states:
            check(len(states))
            state = states.pop()
            own = [layer for layer in self._layers if self._replay.block_of(layer) == state.position]
            pulled, gradients = self._pull_part(trajectory, step, x, state, [*own, *shared], cotangents)
            by_x = by_x + pulled[0][0]
            cotangents = pulled[1:]
            mx.eval(by_x, cotangents, gradients)
            del pulled, state
            while gradients:
                layer, gradient = gradients.popitem()
                receive(layer, gradient[0])
                del gradient
        # x_n enters each row, and x_{n+1} beside the velocity.
        before = cotangent + by_x.sum(axis=0, keepdims=True)
        mx.eval(before)
        return before

    def _pull_part(
        self,
        trajectory: Trajectory,
        step: int,
        x: mx.array,
        state: State,
        layers: Sequence[str],
        cotangents: Arrays,
    ) -> tuple[Arrays, dict[str, mx.array]]:
        """Back through one block, or what follows the last; the gradient by x comes first."""

        def run(arrays: Arrays) -> Arrays:
            entered = state.with_arrays(arrays[1:])
            # Whatever reads the latent, in whichever block: its gradient is the sum over all parts.
            forward = self._forward_at(trajectory, step, arrays[0])
            if state.position == len(self._replay):
                return [self._replay.run_from(forward, entered)]
            return self._replay.advance(forward, entered, state.position + 1).arrays

        return pull_back(self._family.transformer, run, [x, *state.arrays], layers, cotangents)

    def _forward_at(self, trajectory: Trajectory, step: int, x: mx.array) -> Forward:
        """The float32 pass over the rows (R, H, W, C) of one step."""
        conditioning = {name: _in_float32(value) for name, value in trajectory.conditioning.items()}
        sigma = mx.broadcast_to(trajectory.sigmas[step], [len(x)])
        return lambda: self._family.velocity(x, sigma, conditioning)


def _rows(trajectory: Trajectory, step: int = 0) -> mx.array:
    """What enters the transformer at a step, (R, H, W, C) float32: R is 2 with CFG."""
    rows = len(next(iter(trajectory.conditioning.values())))
    return mx.repeat(trajectory.x[step].astype(mx.float32), rows, axis=0)


def _in_float32(array: mx.array) -> mx.array:
    """Positions and masks keep their own dtype."""
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


def probe_of(probe_seed: int, image_index: int, shape: Sequence[int]) -> mx.array:
    """r of +-1 in float32, the same on every machine."""
    signs = np.random.default_rng([probe_seed, image_index]).integers(0, 2, tuple(shape), np.int8)
    return mx.array(2 * signs - 1).astype(mx.float32)
