"""Conditioning: what a model is told of a prompt, as arrays with names.

SD3 and FLUX have the two arrays of the calibration layout, and files hold them under these names. Another
family of models may have other arrays with names of its own; files hold an array NAME as `conditioning.NAME`.
"""

from collections.abc import Mapping

from shared.errors import ShardCorruptError
from shared.layout.npz import Array

Conditioning = Mapping[str, Array]
"""Arrays by name. A name is a Python identifier."""

LAYOUT_AXES = {"conditioning": 2, "pooled_conditioning": 1}
"""The calibration layout's own names, and the axes after the rows: (B, T, D) and (B, P)."""
PREFIX = "conditioning."


def to_members(conditioning: Conditioning) -> dict[str, Array]:
    """Return the arrays under the names that they have in a file."""
    return {name if name in LAYOUT_AXES else PREFIX + name: array for name, array in conditioning.items()}


def own_names(members: list[str]) -> list[str]:
    """Return the names that a family chose itself, of a file with these members."""
    return [member.removeprefix(PREFIX) for member in members if member.startswith(PREFIX)]


def from_members(members: Mapping[str, Array]) -> dict[str, Array]:
    """Return the conditioning within a file's arrays, in the file's order.

    Raises:
        ShardCorruptError: it has no names of its own, and one of the layout's two is missing.
    """
    if not own_names(list(members)):
        for name in LAYOUT_AXES:
            if name not in members:
                raise ShardCorruptError(f"array {name!r} is missing")
    return {
        name.removeprefix(PREFIX): array
        for name, array in members.items()
        if name in LAYOUT_AXES or name.startswith(PREFIX)
    }


def check_conditioning(conditioning: Conditioning, leading: tuple[int, ...]) -> None:
    """Check names, dtypes and shapes.

    Args:
        conditioning: of one image, or of several.
        leading: the sizes of the axes that come before the rows: () for one image.

    Raises:
        ShardCorruptError: an array doesn't fit.
    """
    import numpy as np

    if not conditioning:
        raise ShardCorruptError("conditioning is missing")
    rows = {array.shape[: len(leading) + 1] for array in conditioning.values()}
    if len(rows) > 1 or not all(shape[:-1] == leading and len(shape) > len(leading) for shape in rows):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in conditioning.items())
        raise ShardCorruptError(f"the arrays of the conditioning differ in rows: {shapes}")
    for name, array in conditioning.items():
        of_layout = name in LAYOUT_AXES
        wrong_axes = of_layout and array.ndim != len(leading) + 1 + LAYOUT_AXES[name]
        if array.dtype.kind not in ("f" if of_layout else "fiub") or wrong_axes or not name.isidentifier():
            raise ShardCorruptError(f"array {name!r} is {array.dtype} with {array.ndim} axes")
        if not np.isfinite(array).all():
            raise ShardCorruptError(f"array {name!r} holds NaN or infinity")
