"""The state that each micro-batch of samples has reached in the forward pass, in memory or in files."""

import tempfile
from pathlib import Path

import mlx.core as mx

from worker.engine.steps import State


class KeptStates:
    """States by micro-batch, each with the number of steps that made it."""

    def __init__(self, count: int, *, in_memory: bool) -> None:
        self._steps_done = [0] * count
        self._states: list[State] = [()] * count
        self._folder = None if in_memory else tempfile.TemporaryDirectory(prefix="bitfleet-states-")

    def steps_done(self, batch: int) -> int:
        """How many steps lie behind the kept state; 0 if there is none."""
        return self._steps_done[batch]

    def get(self, batch: int) -> State:
        """The kept state."""
        if self._folder is None or self._steps_done[batch] == 0:
            return self._states[batch]
        arrays = mx.load(str(self._path(batch)))
        assert isinstance(arrays, dict)
        state = tuple(arrays[str(index)] for index in range(len(arrays)))
        # A file is read when evaluated; the next `put` must not overwrite it unread.
        mx.eval(state)
        return state

    def put(self, batch: int, state: State, steps_done: int) -> None:
        """Evaluate and keep a state."""
        mx.eval(state)
        if self._folder is None:
            self._states[batch] = state
        else:
            mx.save_safetensors(str(self._path(batch)), {str(i): array for i, array in enumerate(state)})
        self._steps_done[batch] = steps_done

    def drop(self, batch: int) -> None:
        """Forget a state: the next pass starts at the inputs."""
        self._states[batch] = ()
        self._steps_done[batch] = 0

    def _path(self, batch: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{batch}.safetensors"
