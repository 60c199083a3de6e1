"""Gradients of a whole model, computed block by block: only one block's gradients are in memory at a time.

Going forward, the state at the entry of each block is kept. Going back, each block is run again from its
state, and its part of the forward pass, with the model's code around it, is differentiated alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from worker.engine.backward import Arrays, pull_back
from worker.engine.replay import START, Forward, Replay, State

Receive = Callable[[dict[str, mx.array]], None]
"""Takes gradients (P, outputs, inputs) by layer; they are evaluated, and each layer comes once."""

Check = Callable[[int], None]
"""Told how many parts are still to go, before each; may raise to stop."""


def record_states(replay: Replay, forward: Forward) -> tuple[list[State], mx.array]:
    """The state at the entry of each block and behind the last one, and the output; all evaluated."""
    states = [START]
    for position in range(1, len(replay) + 1):
        states.append(replay.advance(forward, states[-1], position))
        mx.eval(states[-1].arrays)
    output = replay.run_from(forward, states[-1])
    mx.eval(output)
    return states, output


def pull_back_by_block(
    replay: Replay,
    forward: Forward,
    states: list[State],
    *,
    transformer: Any,
    layers: Sequence[str],
    cotangent: mx.array,
    at_once: int,
    receive: Receive,
    check: Check = lambda _: None,
) -> None:
    """Gradients of P scalars <cotangent, output> by the weights of the layers.

    Args:
        replay: of the model.
        forward: the pass that the states belong to, in float32.
        states: of `record_states`; emptied on the way, to free them.
        transformer: whose layers they are.
        layers: dotted paths.
        cotangent: (P, *output.shape).
        at_once: how many of the P go back together.
        receive: told each block's gradients before the next block is touched. Layers that the blocks
            share, as embedders, come last: every block adds to their gradients.
        check: told the progress.
    """
    shared = [layer for layer in layers if replay.block_of(layer) is None]
    sums: dict[str, mx.array] = {}
    cotangents: Arrays = [cotangent]
    while states:
        check(len(states))
        state = states.pop()
        own = [layer for layer in layers if replay.block_of(layer) == state.position]
        cotangents, gradients = pull_back(
            transformer,
            _part(replay, forward, state),
            state.arrays,
            [*own, *shared],
            cotangents,
            at_once=at_once,
        )
        for layer in shared:
            more = gradients.pop(layer)
            sums[layer] = sums[layer] + more if layer in sums else more
        mx.eval(cotangents, gradients, sums)
        receive(gradients)
    receive(sums)


def _part(replay: Replay, forward: Forward, state: State) -> Callable[[Arrays], Arrays]:
    """From the arrays of a state to those of the next one; behind the last block, to the output."""

    def run(arrays: Arrays) -> Arrays:
        entered = state.with_arrays(arrays)
        if state.position == len(replay):
            return [replay.run_from(forward, entered)]
        return replay.advance(forward, entered, state.position + 1).arrays

    return run
