"""A sample set: the samples that one sensitivity run measures on, as workers fetch them."""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shared import npz
from shared.errors import ShardCorruptError
from shared.npz import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSet:
    """n samples of m images, in the layout's order; conditioning once an image.

    `x_next` and `sigma_next` are the latent and sigma one step on, so that a worker can tell whether
    its model is the one that drew these samples: v = (x_next - x) / (sigma_next - sigma).
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
    """(n,) bool: False for an image's last step, whose outcome no sample holds."""
    step_index: Array
    """(n,) int32."""
    image: Array
    """(n,) int32: row of `image_index`, `conditioning` and `pooled_conditioning`."""
    image_index: Array
    """(m,) int32."""
    conditioning: Array
    """(m, B, T, D)."""
    pooled_conditioning: Array
    """(m, B, P)."""

    _names: ClassVar[tuple[str, ...]] = (
        "x",
        "timestep",
        "sigma",
        "x_next",
        "sigma_next",
        "has_next",
        "step_index",
        "image",
        "image_index",
        "conditioning",
        "pooled_conditioning",
    )

    def __len__(self) -> int:
        return len(self.x)

    def to_bytes(self) -> bytes:
        """NPZ bytes; their sha256 names the set."""
        return npz.pack({name: getattr(self, name) for name in self._names})

    @classmethod
    def from_bytes(cls, data: bytes) -> "SampleSet":
        """Read back.

        Raises:
            ShardCorruptError: not a sample set.
        """
        arrays = npz.unpack(data)
        if missing := [name for name in cls._names if name not in arrays]:
            raise ShardCorruptError(f"not a sample set: {', '.join(missing)} missing")
        samples = cls(**{name: arrays[name] for name in cls._names})
        n, m = len(samples.x), len(samples.image_index)
        per_sample = ("timestep", "sigma", "x_next", "sigma_next", "has_next", "step_index", "image")
        if any(len(arrays[name]) != n for name in per_sample) or n == 0:
            raise ShardCorruptError("not a sample set: its arrays differ in length")
        if len(samples.conditioning) != m or len(samples.pooled_conditioning) != m:
            raise ShardCorruptError("not a sample set: conditioning does not fit its images")
        if samples.image.min(initial=0) < 0 or samples.image.max(initial=0) >= m:
            raise ShardCorruptError("not a sample set: a sample of an image it does not hold")
        return samples

    @property
    def implied_velocity(self) -> Array:
        """(n, H, W, C) float32: what the Euler step from x to x_next says the model's output was."""
        step = (self.sigma_next - self.sigma).astype(np.float32).reshape(-1, 1, 1, 1)
        difference = self.x_next.astype(np.float32) - self.x.astype(np.float32)
        velocity: Array = np.divide(difference, step, out=np.zeros_like(difference), where=step != 0)
        return velocity


def sample_set_digest(data: bytes) -> str:
    """sha256 in hex: the name of a packed sample set."""
    return hashlib.sha256(data).hexdigest()
