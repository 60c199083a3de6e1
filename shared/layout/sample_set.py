"""A sample set: the samples on which one sensitivity run measures, packed for the workers."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shared.errors import ShardCorruptError
from shared.layout.conditioning import Conditioning, check_conditioning
from shared.layout.npz import Array
from shared.packed_arrays import BOOLEANS, CONDITIONING, FLOATS, INTEGERS, PackedArrays


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSet(PackedArrays):
    """n samples of m images, in the layout's order. Conditioning is stored once per image.

    `x_next` and `sigma_next` are those of the following step. With them a worker can check that its model
    drew these samples: v = (x_next - x) / (sigma_next - sigma).
    """

    x: Array
    """(n, H, W, C)."""
    timestep: Array
    """(n,) float32."""
    sigma: Array
    """(n,) float32."""
    x_next: Array
    """(n, H, W, C); zeros where `has_next` is False."""
    sigma_next: Array
    """(n,) float32."""
    has_next: Array
    """(n,) bool: False for the last step of an image, which has no following sample."""
    step_index: Array
    """(n,) int32."""
    image: Array
    """(n,) int32: index into `image_index` and the arrays of `conditioning`."""
    image_index: Array
    """(m,) int32."""
    conditioning: Conditioning
    """Arrays (m, B, ...): B rows of each image. SD3 and FLUX: `conditioning` (m, B, T, D) and
    `pooled_conditioning` (m, B, P)."""

    _layout: ClassVar[dict[str, tuple[str, int]]] = {
        "x": (FLOATS, 4),
        "timestep": (FLOATS, 1),
        "sigma": (FLOATS, 1),
        "x_next": (FLOATS, 4),
        "sigma_next": (FLOATS, 1),
        "has_next": (BOOLEANS, 1),
        "step_index": (INTEGERS, 1),
        "image": (INTEGERS, 1),
        "image_index": (INTEGERS, 1),
        "conditioning": (CONDITIONING, 1),
    }

    def __len__(self) -> int:
        return len(self.x)

    def _check(self) -> None:
        n, m = len(self.x), len(self.image_index)
        per_sample = ("timestep", "sigma", "sigma_next", "has_next", "step_index", "image")
        if self.x_next.shape != self.x.shape or any(len(getattr(self, name)) != n for name in per_sample):
            raise ShardCorruptError("not a sample set: its arrays differ in length")
        if n == 0:
            raise ShardCorruptError("not a sample set: it is empty")
        check_conditioning(self.conditioning, leading=(m,))
        if self.image.min() < 0 or self.image.max() >= m:
            raise ShardCorruptError("not a sample set: a sample of an image it does not hold")
        self._check_finite()

    @property
    def rows(self) -> int:
        """B: rows of conditioning of each image."""
        rows: int = next(iter(self.conditioning.values())).shape[1]
        return rows

    @property
    def implied_velocity(self) -> Array:
        """(n, H, W, C) float32: the model's output, computed back from the Euler step from x to x_next."""
        change = (self.sigma_next - self.sigma).astype(np.float32).reshape(-1, 1, 1, 1)
        difference = self.x_next.astype(np.float32) - self.x.astype(np.float32)
        velocity: Array = np.divide(difference, change, out=np.zeros_like(difference), where=change != 0)
        return velocity

    def equals(self, other: "SampleSet") -> bool:
        """Return whether all arrays of two sample sets are equal."""
        return self.to_bytes() == other.to_bytes()
