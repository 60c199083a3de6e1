"""Gradients of a whole model, computed block by block: only one block's gradients are in memory at a time.

Going forward, the state at the entry of each block is kept. Going back, each block is run again from its
state, and its part of the forward pass, with the model's code around it, is differentiated alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from shared.model_card import LayerInfo
from worker.engine.backward import Arrays, Function, pull_back
from worker.engine.pass_memory import bytes_taken
from worker.engine.replay import START, Forward, Replay, State

Receive = Callable[[int, dict[str, mx.array]], None]
"""Takes the number of the first of p probes, and by layer their gradients (p, outputs, inputs).

They are evaluated. A layer of a block comes once for each probe; a layer that blocks share comes once for
each of them, and its gradient is the sum.
"""

Check = Callable[[int], None]
"""Told before each part how many are left; may raise to stop."""


def record_states(replay: Replay, forward: Forward) -> tuple[list[State], mx.array]:
    """Return the state before each block and after the last one, and the output; all evaluated."""
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
    """Compute the gradients of P scalars <cotangent, output> by the weights of the layers, block by block.

    Args:
        replay: of the model.
        forward: the pass that the states belong to, in float32.
        states: of `record_states`; emptied on the way, to free them.
        transformer: whose layers they are.
        layers: dotted paths.
        cotangent: (P, *output.shape).
        at_once: how many of the P go back together.
        receive: told some probes' gradients of a block before the next ones are computed; it empties them.
        check: told the progress.
    """
    shared = [layer for layer in layers if replay.block_of(layer) is None]
    cotangents: Arrays = [cotangent]
    while states:
        check(len(states))
        state = states.pop()
        own = [layer for layer in layers if replay.block_of(layer) == state.position]
        part, entering = _part(replay, forward, state), state.arrays
        del state
        before: list[Arrays] = []
        for start in range(0, len(cotangents[0]), at_once):
            some = [array[start : start + at_once] for array in cotangents]
            pulled, gradients = pull_back(transformer, part, entering, [*own, *shared], some)
            mx.eval(pulled, gradients)
            receive(start, gradients)
            before.append(pulled)
        cotangents = _joined(before)


def memory_of_a_probe(
    replay: Replay,
    forward: Forward,
    states: list[State],
    *,
    transformer: Any,
    layers: Sequence[str],
    position: int,
) -> int:
    """Measure how many bytes one cotangent takes on its way back through the block at `position`.

    The arguments are those of `pull_back_by_block`. Counted is what is in use at the same time, gradients
    included, beside the weights and the states.
    """
    state = states[position]
    own = [layer for layer in layers if replay.block_of(layer) in (position, None)]
    part = _part(replay, forward, state)
    after = states[position + 1].arrays if position < len(replay) else part(state.arrays)
    cotangents = [mx.zeros((1, *array.shape)) for array in after]

    def run() -> None:
        mx.eval(pull_back(transformer, part, state.arrays, own, cotangents))

    return bytes_taken(run)


def largest_position(replay: Replay, layers: Sequence[LayerInfo]) -> int:
    """Return the position of the block whose layers have most weights together."""
    weights = [0] * (len(replay) + 1)
    for layer in layers:
        weights[replay.entry_of(layer.path)] += layer.shape[0] * layer.shape[1]
    return weights.index(max(weights))


def _joined(parts: list[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    joined = [mx.concatenate(list(same)) for same in zip(*parts, strict=True)]
    mx.eval(joined)
    return joined


def _part(replay: Replay, forward: Forward, state: State) -> Function:
    """Return the function from the arrays of a state to those of the next one; after the last block, to
    the output.
    """

    def run(arrays: Arrays) -> Arrays:
        entered = state.with_arrays(arrays)
        if state.position == len(replay):
            return [replay.run_from(forward, entered)]
        return replay.advance(forward, entered, state.position + 1).arrays

    return run
