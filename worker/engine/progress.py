"""A backward trajectory under work, kept in files: a task taken up again goes on where it was left."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from shared.errors import ShardCorruptError
from shared.files import write_atomically
from shared.layout import npz
from shared.layout.npz import Array
from worker.engine.trajectory import Trajectory, to_numpy

logger = logging.getLogger("bitfleet.worker")

_CONDITIONING = "conditioning_of_"


@dataclass(slots=True, kw_only=True)
class Found:
    """What L layers said in the steps that were pulled back so far."""

    steps_left: Array
    """() integer, of N."""
    cotangent: Array
    """(1, H, W, C) float32: the gradient by what entered the step that was pulled back last."""
    cotangent_norm: Array
    """(N + 1,) float64: of the gradients by what entered each step, and of the probe."""
    sketches: Array
    """(L, 3, B) float32: sums of count sketches of G_n, by third of the steps."""
    products: Array
    """(L, C, 3) float64: sums of <G_n, dW>, by third; C is the most candidates that a layer has."""
    reached: Array
    """(L,) bool: a gradient was not all zeros."""

    def fits(self, other: "Found") -> bool:
        """Whether all shapes are the same."""
        return all(
            getattr(self, field.name).shape == getattr(other, field.name).shape
            for field in dataclasses.fields(self)
        )


class KeptProgress:
    """The drawn trajectory of one task, and what was found after each of its steps.

    Progress is a convenience: what can't be read starts anew, and what can't be written is lost.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is the task's own, and may not exist yet."""
        self._folder = folder

    def read_drawing(self) -> Trajectory | None:
        """The trajectory, if it was drawn here; bfloat16 became float32."""
        arrays = self._read("drawing", {"x", "sigmas", "timesteps"})
        if arrays is None:
            return None
        return Trajectory(
            x=[mx.array(x_n) for x_n in arrays["x"]],
            sigmas=mx.array(arrays["sigmas"]),
            timesteps=mx.array(arrays["timesteps"]),
            conditioning={
                name.removeprefix(_CONDITIONING): mx.array(value)
                for name, value in arrays.items()
                if name.startswith(_CONDITIONING)
            },
        )

    def write_drawing(self, trajectory: Trajectory) -> None:
        """Keep a trajectory."""
        arrays = {"sigmas": trajectory.sigmas, "timesteps": trajectory.timesteps}
        arrays |= {f"{_CONDITIONING}{name}": value for name, value in trajectory.conditioning.items()}
        x = np.stack([to_numpy(x_n) for x_n in trajectory.x])
        self._write("drawing", {"x": x, **{name: to_numpy(value) for name, value in arrays.items()}})

    def read(self) -> Found | None:
        """What was found so far."""
        names = {field.name for field in dataclasses.fields(Found)}
        arrays = self._read("found", names)
        return None if arrays is None else Found(**{name: arrays[name].copy() for name in names})

    def write(self, found: Found) -> None:
        """Keep what was found after one more step."""
        self._write("found", {field.name: getattr(found, field.name) for field in dataclasses.fields(found)})

    def _read(self, name: str, needed: set[str]) -> dict[str, Array] | None:
        try:
            arrays = npz.unpack(self._path(name).read_bytes())
        except (OSError, ShardCorruptError):
            return None
        return arrays if needed <= arrays.keys() else None

    def _write(self, name: str, arrays: dict[str, Array]) -> None:
        try:
            write_atomically(self._path(name), npz.pack(arrays))
        except OSError as error:
            logger.warning("the progress of %s is not kept: %s", self._folder.name, error)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npz"
