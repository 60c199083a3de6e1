"""Going over a large matrix some rows at a time, so that what is made of it takes little memory."""

from collections.abc import Iterator

from shared.costs import SLICE_WEIGHTS


def row_slices(shape: tuple[int, int]) -> Iterator[slice]:
    """Slices of the rows of (outputs, inputs), of at most `SLICE_WEIGHTS` numbers each, or of eight rows."""
    outputs, inputs = shape
    rows = max(8, SLICE_WEIGHTS // inputs // 8 * 8)
    for start in range(0, outputs, rows):
        yield slice(start, min(start + rows, outputs))
