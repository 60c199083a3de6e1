"""Named arrays as one NPZ: packed, and checked when they are read back."""

from typing import ClassVar, Self

import numpy as np

from shared.errors import ShardCorruptError
from shared.layout import npz

FLOATS = "f"
INTEGERS = "iu"
BOOLEANS = "b"


class PackedArrays:
    """Packing and checking that every kind of NPZ shares; `_layout` names kind and rank of each array."""

    __slots__ = ()
    _layout: ClassVar[dict[str, tuple[str, int]]]

    def to_bytes(self) -> bytes:
        """NPZ bytes."""
        return npz.pack({name: getattr(self, name) for name in self._layout})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read back.

        Raises:
            ShardCorruptError: not an NPZ, an array is missing, or of another kind or rank.
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
        """Relations between the arrays; raises ShardCorruptError."""

    def _check_finite(self) -> None:
        for name in self._layout:
            if not np.isfinite(getattr(self, name)).all():
                raise ShardCorruptError(f"array {name!r} holds NaN or infinity")
