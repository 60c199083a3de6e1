"""The state that each micro-batch of samples has reached in the forward pass, in memory or in files."""

import tempfile
from pathlib import Path

import mlx.core as mx

from worker.engine.replay import START, State


class KeptStates:
    """States by micro-batch."""

    def __init__(self, count: int, *, in_memory: bool) -> None:
        self._states = [START] * count
        """Of each batch; where arrays are kept in files, with empty arrays."""
        self._folder = None if in_memory else tempfile.TemporaryDirectory(prefix="bitfleet-states-")

    def position(self, batch: int) -> int:
        """How many blocks lie behind the kept state; 0 if there is none."""
        return self._states[batch].position

    def get(self, batch: int) -> State:
        """The kept state."""
        state = self._states[batch]
        if self._folder is None or not state.arrays:
            return state
        arrays = mx.load(str(self._path(batch)))
        assert isinstance(arrays, dict)
        in_order = [arrays[str(index)] for index in range(len(arrays))]
        # A file is read when evaluated; the next `put` must not overwrite it unread.
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
