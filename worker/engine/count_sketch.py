"""The norm of a sum of matrices that is never held: a count sketch (Charikar, Chen, Farach-Colton 2002).

Every number of a matrix G gets a random sign and a random bucket; c holds the buckets' sums. The sketch of a
sum is the sum of the sketches, and ||c||^2 is an unbiased estimate of ||G||^2 with a relative standard error
of at most sqrt(2 / buckets).
"""

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from shared.layout.npz import Array
from worker.engine.row_slices import row_slices


class CountSketch:
    """Sketches matrices of one shape: the same signs and buckets each time, and from each equal seed."""

    def __init__(self, shape: tuple[int, int], buckets: int, seed: int) -> None:
        """Draw the buckets; signs are drawn anew for each matrix, and never held.

        Args:
            shape: (outputs, inputs).
            buckets: B, how many.
            seed: of signs and buckets.
        """
        self._shape, self._buckets = shape, buckets
        self._seed = (seed, 0)
        random = np.random.default_rng((seed, 1))
        outputs, inputs = shape
        self._width = -(-inputs // buckets) * buckets
        # Number j of row i goes to bucket (j + turn of its chunk of B columns + turn of i) mod B: any two of
        # them meet with a chance of 1 in B at most. So all is sums and a gather, where a scatter would queue
        # for B addresses.
        self._chunk_turns: list[int] = random.integers(0, buckets, self._width // buckets).tolist()
        self._turns = mx.array(random.integers(0, buckets, (outputs, 1), np.uint32))

    def of(self, matrix: mx.array) -> Array:
        """c (B,) float64, of (outputs, inputs) float32."""
        signs = np.random.default_rng(self._seed).bytes(-(-self._shape[0] * self._shape[1] // 8))
        sketch = np.zeros(self._buckets)
        for rows in row_slices((self._shape[0], self._width)):
            sketch += np.array(self._of_rows(matrix[rows], rows, np.frombuffer(signs, np.uint8)))
        return sketch

    def _of_rows(self, part: mx.array, rows: slice, signs: Array) -> mx.array:
        """c (B,) float32, lazy, of some rows."""
        count, inputs = part.shape
        signed = mx.where(_bits(signs, rows.start * inputs, part.shape), part, -part)
        signed = mx.pad(signed, [(0, 0), (0, self._width - inputs)])
        chunks = signed.reshape(count, -1, self._buckets)
        by_row = mx.zeros((count, self._buckets))
        for chunk, turn in enumerate(self._chunk_turns):
            # Turned by hand: two copies, no gather.
            by_row = by_row + mx.concatenate([chunks[:, chunk, turn:], chunks[:, chunk, :turn]], axis=1)
        turned = mx.arange(self._buckets, dtype=mx.uint32)[None] + self._turns[rows]
        places = mx.remainder(turned, self._buckets)
        sketch: mx.array = mx.take_along_axis(by_row, places, axis=1).sum(axis=0)
        return sketch


def _bits(octets: Array, first: int, shape: Sequence[int]) -> mx.array:
    """Bits of octets as bool, from the first on, a multiple of 8."""
    size = math.prod(shape)
    some = mx.array(octets[first // 8 : (first + size + 7) // 8])
    bits = mx.bitwise_and(some[:, None] >> mx.arange(8, dtype=mx.uint8), 1)
    return bits.reshape(-1)[:size].reshape(*shape).astype(mx.bool_)
