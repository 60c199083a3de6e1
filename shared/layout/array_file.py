"""An open NPZ of the calibration layout, whose arrays are checked when they are read."""

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.lib.npyio import NpzFile

from shared.errors import SampleError
from shared.layout.conditioning import PREFIX, own_names
from shared.layout.npz import Array


class Key(NamedTuple):
    """What an array has to be."""

    names: tuple[str, ...]
    """The layout's own name, then other accepted names."""
    kinds: str
    """Accepted kinds of numpy dtypes."""
    ranks: range


_CONDITIONING = {
    "conditioning": Key(("conditioning", "arr_3"), "f", range(2, 5)),
    "pooled_conditioning": Key(("pooled_conditioning", "arr_4"), "f", range(1, 5)),
}


class ArrayFile:
    """An open file. A context manager.

    Raises:
        SampleError: when a damaged file is opened or read; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._npz = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._npz.close()

    def load_conditioning(self) -> dict[str, Array]:
        """Read the layout's two arrays, or those that have names of the model's own, or both."""
        others = own_names(list(self._npz))
        keys = {
            name: key
            for name, key in _CONDITIONING.items()
            if not others or any(accepted in self._npz for accepted in key.names)
        }
        keys |= {name: Key((PREFIX + name,), "fiub", range(1, 9)) for name in others}
        return {name: self._checked(name, key) for name, key in keys.items()}

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

    def _checked(self, name: str, key: Key) -> Array:
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
