"""Named arrays, packed into one NPZ and checked when they are read."""

from typing import ClassVar, Self

from shared.errors import ShardCorruptError
from shared.layout import npz
from shared.layout.conditioning import from_members, to_members
from shared.layout.npz import Array

FLOATS = "f"
INTEGERS = "iu"
BOOLEANS = "b"
CONDITIONING = "conditioning"
"""In place of dtype kinds: arrays by name, of any dtype and rank; see `shared.layout.conditioning`."""


class PackedArrays:
    """Base of every set of arrays that travels as NPZ. `_layout` gives the dtype kinds and rank of each."""

    __slots__ = ()
    _layout: ClassVar[dict[str, tuple[str, int]]]

    def to_bytes(self) -> bytes:
        """Return the arrays as the bytes of an NPZ."""
        members: dict[str, Array] = {}
        for name, (kinds, _) in self._layout.items():
            value = getattr(self, name)
            members |= to_members(value) if kinds == CONDITIONING else {name: value}
        return npz.pack(members)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the arrays that `to_bytes` packed.

        Raises:
            ShardCorruptError: this is no NPZ, or an array is missing or has another dtype or rank.
        """
        members = npz.unpack(data)
        values: dict[str, Array | dict[str, Array]] = {}
        for name, (kinds, ndim) in cls._layout.items():
            if kinds == CONDITIONING:
                values[name] = from_members(members)
                continue
            if name not in members:
                raise ShardCorruptError(f"array {name!r} is missing")
            array = values[name] = members[name]
            if array.dtype.kind not in kinds or array.ndim != ndim:
                raise ShardCorruptError(f"array {name!r} is {array.dtype} with {array.ndim} axes")
        shard = cls(**values)
        shard._check()
        return shard

    def _check(self) -> None:
        """Check how the arrays relate to each other; raise ShardCorruptError if they don't fit."""

    def _check_finite(self) -> None:
        import numpy as np

        for name, (kinds, _) in self._layout.items():
            if kinds != CONDITIONING and not np.isfinite(getattr(self, name)).all():
                raise ShardCorruptError(f"array {name!r} holds NaN or infinity")
