"""The norm of a sum of matrices that is never held: a count sketch (Charikar, Chen, Farach-Colton 2002).

Every number of a matrix G gets a random sign and a random bucket; c holds the buckets' sums. The sketch of a
sum is the sum of the sketches, and ||c||^2 is an unbiased estimate of ||G||^2 with a relative standard error
of at most sqrt(2 / buckets).
"""

import mlx.core as mx
import numpy as np


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
        width = -(-inputs // buckets) * buckets
        # Number j of row i goes to bucket (place of j + turn of i) mod B: any two of them meet with a chance
        # of 1 in B at most. So all is sums and a gather, where a scatter would queue for B addresses.
        self._order = mx.array(random.permutation(width).astype(np.uint32))
        self._padding = width - inputs
        turns = random.integers(0, buckets, (outputs, 1), np.uint32)
        self._turns = mx.array(turns)

    def of(self, matrix: mx.array) -> mx.array:
        """c (B,) float32, lazy, of (outputs, inputs) float32."""
        outputs, _ = self._shape
        signed = mx.where(self._signs(), matrix, -matrix)
        if self._padding:
            signed = mx.pad(signed, [(0, 0), (0, self._padding)])
        by_row = mx.take(signed, self._order, axis=1).reshape(outputs, -1, self._buckets).sum(axis=1)
        places = mx.remainder(mx.arange(self._buckets, dtype=mx.uint32)[None] + self._turns, self._buckets)
        sketch: mx.array = mx.take_along_axis(by_row, places, axis=1).sum(axis=0)
        return sketch

    def _signs(self) -> mx.array:
        """(outputs, inputs) bool."""
        size = self._shape[0] * self._shape[1]
        octets = mx.array(np.frombuffer(np.random.default_rng(self._seed).bytes(-(-size // 8)), np.uint8))
        bits = mx.bitwise_and(octets[:, None] >> mx.arange(8, dtype=mx.uint8), 1)
        return bits.reshape(-1)[:size].reshape(self._shape).astype(mx.bool_)
