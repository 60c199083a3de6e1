"""One sample file of the calibration layout: opening, checking and reading it."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.npyio import NpzFile

from shared.errors import SampleError
from shared.layout.conditioning import PREFIX, Conditioning, own_names
from shared.layout.npz import Array


class _Key(NamedTuple):
    names: tuple[str, ...]
    """The layout's own name, then other accepted names."""
    kinds: str
    """Accepted kinds of numpy dtypes."""
    ranks: range


_ARRAYS = {
    "x": _Key(("x", "latent", "arr_0"), "f", range(3, 5)),
    "timestep": _Key(("timestep", "arr_1"), "fiu", range(2)),
    "sigma": _Key(("sigma", "arr_2"), "fiu", range(2)),
}
_CONDITIONING = {
    "conditioning": _Key(("conditioning", "arr_3"), "f", range(2, 5)),
    "pooled_conditioning": _Key(("pooled_conditioning", "arr_4"), "f", range(1, 5)),
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


class SampleFile:
    """An open sample file. Its step index is known; `load` reads the arrays.

    Raises:
        SampleError: when opening or loading a damaged file; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._npz = self._open()
        try:
            self.step_index = self._read_step_index()
        except BaseException:
            self._npz.close()
            raise

    def __enter__(self) -> "SampleFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._npz.close()

    def load(self, image_index: int, step_index: int) -> Sample:
        """Read and check the arrays."""
        arrays = {name: self._checked(name, key) for name, key in _ARRAYS.items()}
        return Sample(
            **arrays,
            named_conditioning=self._conditioning(),
            step_index=step_index,
            image_index=image_index,
            path=self.path,
        )

    def _conditioning(self) -> dict[str, Array]:
        """Read the layout's two arrays, or those that have names of the model's own, or both."""
        others = own_names(list(self._npz))
        keys = {
            name: key
            for name, key in _CONDITIONING.items()
            if not others or any(accepted in self._npz for accepted in key.names)
        }
        keys |= {name: _Key((PREFIX + name,), "fiub", range(1, 9)) for name in others}
        return {name: self._checked(name, key) for name, key in keys.items()}

    def load_latent(self) -> Latent:
        """Read and check the arrays that differ from step to step."""
        return Latent(*(self._checked(name, _ARRAYS[name]) for name in Latent._fields))

    def _fail(self, what: str) -> SampleError:
        return SampleError(f"{self.path}: {what}")

    def _open(self) -> NpzFile:
        try:
            opened = np.load(self.path, allow_pickle=False)
        except FileNotFoundError:
            raise self._fail("no such file") from None
        except Exception as error:  # noqa: BLE001 - a damaged file raises nearly everything
            raise self._fail(f"not an NPZ: {error}") from None
        if not isinstance(opened, NpzFile):
            raise self._fail("not an NPZ: a single array")
        return opened

    def _read(self, names: tuple[str, ...]) -> Array:
        found = next((name for name in names if name in self._npz), None)
        if found is None:
            raise self._fail(f"key {names[0]!r} is missing; it holds: {', '.join(self._npz) or 'nothing'}")
        try:
            array = self._npz[found]
        except Exception as error:  # noqa: BLE001 - pickled objects, zlib errors, a header that lies
            raise self._fail(f"key {found!r} can't be read: {error}") from None
        if not isinstance(array, np.ndarray):
            raise self._fail(f"key {found!r} is no array")
        return array

    def _read_step_index(self) -> int:
        array = self._read(_STEP_INDEX_NAMES)
        if array.dtype.kind not in "iu" or array.size != 1:
            raise self._fail(f"'step_index' is {array.dtype} {array.shape}; one integer belongs there")
        if array.min() < 0:
            raise self._fail(f"'step_index' is {array.min()}; it can't be negative")
        return int(array.reshape(()))

    def _checked(self, name: str, key: _Key) -> Array:
        array = self._read(key.names)
        if array.dtype.kind not in key.kinds:
            wanted = "floating point belongs" if key.kinds == "f" else "numbers belong"
            raise self._fail(f"{name!r} is of dtype {array.dtype}; {wanted} there")
        if array.ndim not in key.ranks:
            ranks = f"{key.ranks[0]} to {key.ranks[-1]}"
            raise self._fail(f"{name!r} has shape {array.shape}; {ranks} axes belong there")
        if not np.isfinite(array).all():
            raise self._fail(f"{name!r} holds NaN or infinity")
        return array
