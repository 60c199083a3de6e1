"""Named arrays, packed into one NPZ and checked when they are read."""

from typing import ClassVar, Self

import numpy as np

from shared.errors import ShardCorruptError
from shared.layout import npz

FLOATS = "f"
INTEGERS = "iu"
BOOLEANS = "b"


class PackedArrays:
    """Base of every set of arrays that travels as NPZ. `_layout` gives the dtype kinds and rank of each."""

    __slots__ = ()
    _layout: ClassVar[dict[str, tuple[str, int]]]

    def to_bytes(self) -> bytes:
        """Return the arrays as the bytes of an NPZ."""
        return npz.pack({name: getattr(self, name) for name in self._layout})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the arrays that `to_bytes` packed.

        Raises:
            ShardCorruptError: this is no NPZ, or an array is missing or has another dtype or rank.
        """
        arrays = npz.unpack(data)
        for name, (kinds, ndim) in cls._layout.items():
            if name not in arrays:
                raise ShardCorruptError(f"array {name!r} is missing")
            array = arrays[name]
            if array.dtype.kind not in kinds or array.ndim != ndim:
                raise ShardCorruptError(f"array {name!r} is {array.dtype} with {array.ndim} axes")
        shard = cls(**{name: arrays[name] for name in cls._layout})
        shard._check()
        return shard

    def _check(self) -> None:
        """Check how the arrays relate to each other; raise ShardCorruptError if they don't fit."""

    def _check_finite(self) -> None:
        for name in self._layout:
            if not np.isfinite(getattr(self, name)).all():
                raise ShardCorruptError(f"array {name!r} holds NaN or infinity")
