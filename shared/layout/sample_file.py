"""One sample file of the calibration layout: opening, checking and reading it."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shared.layout.array_file import ArrayFile, Key
from shared.layout.conditioning import Conditioning
from shared.layout.npz import Array

_ARRAYS = {
    "x": Key(("x", "latent", "arr_0"), "f", range(3, 5)),
    "timestep": Key(("timestep", "arr_1"), "fiu", range(2)),
    "sigma": Key(("sigma", "arr_2"), "fiu", range(2)),
}
_STEP_INDEX_NAMES = ("step_index", "arr_5")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The inputs of one denoising step, in the dtypes of the file."""

    x: Array
    """The latent before the step, for example (1, H, W, C)."""
    timestep: Array
    """() or (n,)."""
    sigma: Array
    """() or (n,)."""
    named_conditioning: Conditioning
    """All arrays of the conditioning by name. SD3 and FLUX have the two that the properties below return."""
    step_index: int
    image_index: int
    path: Path

    @property
    def conditioning(self) -> Array:
        """For example (B, T, D); B is 2 with CFG (text, negative)."""
        return self.named_conditioning["conditioning"]

    @property
    def pooled_conditioning(self) -> Array:
        """For example (B, P)."""
        return self.named_conditioning["pooled_conditioning"]


class Latent(NamedTuple):
    """What a sample holds beside the conditioning, which is the same for all steps of an image."""

    x: Array
    timestep: Array
    sigma: Array


class SampleFile(ArrayFile):
    """An open sample file. Its step index is known; `load` reads the arrays.

    Raises:
        SampleError: when opening or loading a damaged file; the message names it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self.step_index = self._read_step_index()
        except BaseException:
            self._npz.close()
            raise

    def load(self, image_index: int, step_index: int) -> Sample:
        """Read and check the arrays."""
        arrays = {name: self._checked(name, key) for name, key in _ARRAYS.items()}
        return Sample(
            **arrays,
            named_conditioning=self.load_conditioning(),
            step_index=step_index,
            image_index=image_index,
            path=self.path,
        )

    def load_latent(self) -> Latent:
        """Read and check the arrays that differ from step to step."""
        return Latent(*(self._checked(name, _ARRAYS[name]) for name in Latent._fields))

    def _read_step_index(self) -> int:
        array = self._read(_STEP_INDEX_NAMES)
        if array.dtype.kind not in "iu" or array.size != 1:
            raise self._fail(f"'step_index' is {array.dtype} {array.shape}; one integer belongs there")
        if array.min() < 0:
            raise self._fail(f"'step_index' is {array.min()}; it can't be negative")
        return int(array.reshape(()))
