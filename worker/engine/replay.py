"""Entering a model's forward pass at any of its blocks, without writing that pass a second time.

A changed weight in block k changes nothing before it. So the model's own forward pass runs from its start,
but every block before k gives back the output that it gave before, instead of computing it. MLX computes
only what somebody reads: with those outputs at hand, nobody reads what led to them.

What the model computes outside of its blocks (embeddings, modulation, the final layer) is computed anew in
each pass, as far as a block from k on reads it.

Of the outputs before k only those are kept that something from k on reads: MLX's own graph of one pass says
which. All others are answered with NaN, which costs nothing as long as nobody reads them.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from shared.errors import ModelUnavailableError

Forward = Callable[[], mx.array]
"""One forward pass of the model over fixed inputs, with the weights as they are now; lazy."""

_Answer = Callable[[Any, Callable[[], Any]], Any]
"""Takes a block and its own computation, and returns what the block is to return."""


@dataclass(frozen=True, slots=True)
class _Forgotten:
    """An output that no later block reads. The model's code may still ask for its shape."""

    shape: tuple[int, ...]
    dtype: mx.Dtype

    def placeholder(self) -> mx.array:
        value = float("nan") if mx.issubdtype(self.dtype, mx.inexact) else 0
        return mx.full(self.shape, value, self.dtype)


@dataclass(frozen=True, slots=True)
class State:
    """A forward pass up to the entry of one block."""

    outputs: tuple[Any, ...] = ()
    """What each earlier block returned, in the order of the calls: arrays, or `_Forgotten`."""

    @property
    def position(self) -> int:
        """How many blocks are done; the next one starts here."""
        return len(self.outputs)

    @property
    def arrays(self) -> list[mx.array]:
        """The arrays that are kept, in a fixed order."""
        return _arrays(self.outputs)

    def with_arrays(self, arrays: Sequence[mx.array]) -> "State":
        """The same state with other values for `arrays`."""
        left = iter(arrays)
        return State(_map_arrays(lambda _: next(left), self.outputs))


START = State()


class Replay:
    """Runs a model's forward pass from any of its blocks on."""

    def __init__(self, stages: Mapping[str, Any], after: Sequence[str], forward: Forward) -> None:
        """Learn the order in which the blocks are called; `forward` is traced once, and not computed.

        Args:
            stages: the model's lists of blocks, by their dotted paths; a module that stands by itself, as an
                embedder that is called once, is a block of its own.
            after: starts of the dotted paths of what is read only after the last block.
            forward: of any inputs.

        Raises:
            ModelUnavailableError: a pass calls no block of the stages, or one of them twice.
        """
        blocks = blocks_by_path(stages)
        self._blocks = list(blocks.values())
        self._paths = {f"{path}.": id(block) for path, block in blocks.items()}
        self._in_lists = {
            id(block) for of_list in stages.values() if isinstance(of_list, list) for block in of_list
        }
        self._after = tuple(after)
        self._order: list[int] = []
        self._last_reader = self._trace(forward)
        if not self._order or len(set(self._order)) < len(self._order):
            raise ModelUnavailableError(
                f"a forward pass calls {len(set(self._order))} blocks of {', '.join(stages)} "
                f"{len(self._order)} times; it must call each once: correct the stages of its family"
            )
        self._position = {block: position for position, block in enumerate(self._order)}

    def __len__(self) -> int:
        """Return how many blocks a pass calls."""
        return len(self._order)

    @property
    def first_block(self) -> int:
        """Position of the first block that lies in a list; embedders in the stages come before."""
        return next((position for position, block in enumerate(self._order) if block in self._in_lists), 0)

    def path_at(self, position: int) -> str:
        """Dotted path of the block that a pass calls at this position."""
        block = self._order[position]
        return next(path.removesuffix(".") for path, known in self._paths.items() if known == block)

    def block_of(self, layer: str) -> int | None:
        """Position of the block that a layer lies in; `len(self)` after the last block.

        None for what the blocks share, as embedders: a change there changes the pass from its start.
        """
        if layer.startswith(self._after):
            return len(self)
        for path, block in self._paths.items():
            if f"{layer}.".startswith(path):
                # A block that a pass never calls changes nothing.
                return self._position.get(block, len(self))
        return None

    def entry_of(self, layer: str) -> int:
        """Position of the first block that a change of this layer changes; 0 for the whole pass."""
        return self.block_of(layer) or 0

    def advance(self, forward: Forward, state: State, position: int) -> State:
        """Run the blocks from the entry of `state` up to that of another block.

        Args:
            forward: the pass that `state` belongs to.
            state: `START`, or any before `position`.
            position: from `state.position` to `len(self)`.

        Returns:
            The state there, lazy: evaluate its `arrays`.
        """
        if position == state.position:
            return state
        outputs = list(state.outputs)

        def record(output: Any) -> None:
            outputs.append(_copy(output))
            if len(outputs) == position:
                raise _ReachedError

        try:
            self._run(forward, state, record)
        except _ReachedError:
            return State(self._without_unread(outputs))
        raise AssertionError(f"the pass ended before block {position}")

    def states(self, forward: Forward) -> list[State]:
        """Return the state before each block and after the last one; lazy, from one pass."""
        outputs: list[Any] = []
        states = [START]

        def record(output: Any) -> None:
            outputs.append(_copy(output))
            states.append(State(self._without_unread(outputs)))

        self._run(forward, START, record)
        return states

    def run_from(self, forward: Forward, state: State) -> mx.array:
        """Return what `forward` returns, lazy, computed from `state` on."""
        return self._run(forward, state, lambda _: None)

    def _run(self, forward: Forward, state: State, done: Callable[[Any], None]) -> mx.array:
        position = 0

        def answer(block: Any, compute: Callable[[], Any]) -> Any:
            nonlocal position
            if self._order[position] != id(block):
                raise ModelUnavailableError(
                    "the model calls its blocks in another order in each forward pass"
                )
            position += 1
            if position <= state.position:
                return _remember(state.outputs[position - 1])
            output = compute()
            done(output)
            return output

        with _answering(self._blocks, answer):
            return forward()

    def _trace(self, forward: Forward) -> dict[tuple[int, int], int]:
        """Learn the order of the calls, and which block is the last to read each array that a block returns.

        Returns:
            By position of the returning block and number of the array: position of the reading block, or
            how many blocks there are where the output reads it; nothing where nobody does.
        """
        named: dict[str, mx.array] = {}
        keys: dict[str, tuple[int, int]] = {}
        computed: list[list[mx.array]] = []

        def answer(block: Any, compute: Callable[[], Any]) -> Any:
            output = compute()
            computed.append(_arrays(output))
            # The model goes on with other arrays, so that the graph of what comes next ends here.
            stand_in = _map_arrays(mx.zeros_like, output)
            for number, array in enumerate(_arrays(stand_in)):
                name = f"output_{len(self._order)}_{number}"
                named[name], keys[name] = array, (len(self._order), number)
            self._order.append(id(block))
            return _copy(stand_in)

        with _answering(self._blocks, answer):
            computed.append([forward()])
        last_reader: dict[tuple[int, int], int] = {}
        for reader, arrays in enumerate(computed):
            graph = io.StringIO()
            # An array that is passed on as it is would have no edge of its own.
            mx.export_to_dot(graph, *map(mx.stop_gradient, arrays), **named)
            last_reader |= {keys[name]: reader for name in named if f'"{name}" ->' in graph.getvalue()}
        return last_reader

    def _without_unread(self, outputs: Sequence[Any]) -> tuple[Any, ...]:
        """Replace the outputs that no later block reads by `_Forgotten`."""

        def kept(position: int, output: Any) -> Any:
            number = count()
            return _map_arrays(
                lambda array: (
                    array
                    if self._last_reader.get((position, next(number)), -1) >= len(outputs)
                    else _Forgotten(array.shape, array.dtype)
                ),
                output,
            )

        return tuple(kept(position, output) for position, output in enumerate(outputs))


def blocks_by_path(stages: Mapping[str, Any]) -> dict[str, Any]:
    """Return each block of the stages by its dotted path."""
    blocks: dict[str, Any] = {}
    for path, stage in stages.items():
        blocks |= (
            {f"{path}.{i}": block for i, block in enumerate(stage)}
            if isinstance(stage, list)
            else {path: stage}
        )
    return blocks


class _ReachedError(BaseException):
    """Raised to leave a forward pass early, through any code of the model."""


def _arrays(output: Any) -> list[mx.array]:
    leaves: Any = tree_flatten(output)
    return [leaf for _, leaf in leaves if isinstance(leaf, mx.array)]


def _map_arrays(change: Callable[[mx.array], Any], output: Any) -> Any:
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, mx.array) else leaf, output)


def _copy(output: Any) -> Any:
    """The same values; a model that changes an array in place (`h += 1`) changes the copy's original only."""
    return _map_arrays(copy, output)


def _remember(output: Any) -> Any:
    return _copy(tree_map(lambda leaf: leaf.placeholder() if isinstance(leaf, _Forgotten) else leaf, output))


_answers: dict[int, _Answer] = {}
"""By the id of a block whose calls are answered now.

Not held by the block's class: a class is a cycle, and would keep a pass's arrays until Python looks for it.
"""


@contextmanager
def _answering(blocks: Iterable[Any], answer: _Answer) -> Iterator[None]:
    """Within this context a call of a block returns `answer(block, its own computation)`.

    Python looks `__call__` up on the class, so each block gets a subclass of its own class for the time.
    """
    originals = [(block, type(block)) for block in blocks]
    try:
        for block, original in originals:
            _answers[id(block)] = answer
            block.__class__ = _stand_in(original)  # type: ignore[arg-type]
        yield
    finally:
        for block, original in originals:
            block.__class__ = original
            _answers.pop(id(block), None)


@cache
def _stand_in(original: Any) -> Any:

    def call(block: Any, *args: Any, **kwargs: Any) -> Any:
        return _answers[id(block)](block, partial(original.__call__, block, *args, **kwargs))

    return type(original.__name__, (original,), {"__call__": call})
