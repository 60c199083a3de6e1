"""The shard of one image, opened to read samples out of it: all steps, and the conditioning once."""

from collections.abc import Iterator
from functools import cached_property

from shared.layout.array_file import ArrayFile, Key
from shared.layout.conditioning import Conditioning
from shared.layout.npz import Array
from shared.layout.sample_file import Latent, Sample

_ARRAYS = {
    "x": Key(("x",), "f", range(4, 5)),
    "timestep": Key(("timestep",), "f", range(1, 2)),
    "sigma": Key(("sigma",), "f", range(1, 2)),
}


class ShardFile(ArrayFile):
    """An open shard, as `shared.kinds.calibration` describes it. It is not compared with any record.

    Raises:
        SampleError: when a damaged file is opened or read; the message names it.
    """

    def steps(self) -> Iterator["ShardStep"]:
        """Yield all steps."""
        return (ShardStep(self, step) for step in range(len(self.latents.timestep)))

    @cached_property
    def latents(self) -> Latent:
        """`x` (N, H, W, C), `timestep` (N,) and `sigma` (N,): all steps, not what follows them."""
        found = Latent(*(self._checked(name, _ARRAYS[name]) for name in Latent._fields))
        steps = len(found.timestep)
        if len(found.x) != steps + 1 or len(found.sigma) != steps + 1:
            raise self._fail(f"{len(found.x)} latents and {len(found.sigma)} sigmas do not fit {steps} steps")
        return found._replace(x=found.x[:-1], sigma=found.sigma[:-1])

    @cached_property
    def conditioning(self) -> Conditioning:
        """Of all steps."""
        return self.load_conditioning()


class ShardStep:
    """One step in an open shard, which is read as a `SampleFile` is."""

    def __init__(self, shard: ShardFile, step_index: int) -> None:
        self.path = shard.path
        self.step_index = step_index
        self._shard = shard

    def load(self, image_index: int, step_index: int) -> Sample:
        """Return the arrays as the step's sample file holds them."""
        return Sample(
            **self.load_latent()._asdict(),
            named_conditioning={name: array.copy() for name, array in self._shard.conditioning.items()},
            step_index=step_index,
            image_index=image_index,
            path=self.path,
        )

    def load_latent(self) -> Latent:
        """Return the arrays that differ from step to step."""
        x, timestep, sigma = self._shard.latents
        return Latent(
            x=x[self.step_index : self.step_index + 1].copy(),
            timestep=_scalar(timestep, self.step_index),
            sigma=_scalar(sigma, self.step_index),
        )


def _scalar(values: Array, index: int) -> Array:
    """Return one value as a float32 array of no axes."""
    scalar: Array = values[index : index + 1].astype("float32").reshape(())
    return scalar
