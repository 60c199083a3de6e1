"""The state that each micro-batch has reached in the forward pass, kept in memory or in files."""

import tempfile
from pathlib import Path

import mlx.core as mx

from worker.engine.replay import START, State


class KeptStates:
    """The kept states by micro-batch."""

    def __init__(self, count: int, *, in_memory: bool) -> None:
        self._states = [START] * count
        """One per batch. The arrays are empty if the real ones are in files."""
        self._folder = None if in_memory else tempfile.TemporaryDirectory(prefix="bitfleet-states-")

    def position(self, batch: int) -> int:
        """Return how many blocks are done in the kept state; 0 if there is none."""
        return self._states[batch].position

    def get(self, batch: int) -> State:
        """Return the kept state."""
        state = self._states[batch]
        if self._folder is None or not state.arrays:
            return state
        arrays = mx.load(str(self._path(batch)))
        assert isinstance(arrays, dict)
        in_order = [arrays[str(index)] for index in range(len(arrays))]
        # MLX reads the file when the arrays are evaluated: do that now, before the next `put` overwrites it.
        mx.eval(in_order)
        return state.with_arrays(in_order)

    def put(self, batch: int, state: State) -> None:
        """Evaluate and keep a state."""
        mx.eval(state.arrays)
        if self._folder is not None and state.arrays:
            arrays = {str(index): array for index, array in enumerate(state.arrays)}
            mx.save_safetensors(str(self._path(batch)), arrays)
            state = state.with_arrays([mx.zeros(0)] * len(arrays))
        self._states[batch] = state

    def drop(self, batch: int) -> None:
        """Forget a state: the next pass starts at the inputs."""
        self._states[batch] = START

    def _path(self, batch: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{batch}.safetensors"
