"""What a finished task leaves: the arrays of each kind of shard, packed and checked."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from shared.errors import ShardCorruptError
from shared.layout import npz
from shared.layout.npz import Array

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


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationShard(PackedArrays):
    """One image's trajectory of N steps, in the run's precision; bfloat16, which numpy lacks, as float32.

    Zeros in the low halves of float32 pack well: conditioning from bfloat16 takes 2.1 bytes a value.
    """

    x: Array
    """(N + 1, H, W, C): the latent entering each step, then the final one."""
    sigma: Array
    """(N + 1,) float32; the last is 0 for SD3."""
    timestep: Array
    """(N,) in activation dtype, held as float32."""
    conditioning: Array
    """(B, T, D): B is 2 with CFG (text, negative), else 1."""
    pooled_conditioning: Array
    """(B, P)."""
    preview_png: Array
    """(bytes,) uint8: the decoded image as PNG; empty if it couldn't be decoded."""
    model_json: Array
    """(bytes,) uint8: see shared.model_card."""

    _layout: ClassVar[dict[str, tuple[str, int]]] = {
        "x": (FLOATS, 4),
        "sigma": (FLOATS, 1),
        "timestep": (FLOATS, 1),
        "conditioning": (FLOATS, 3),
        "pooled_conditioning": (FLOATS, 2),
        "preview_png": ("u", 1),
        "model_json": ("u", 1),
    }

    def _check(self) -> None:
        steps = len(self.timestep)
        if len(self.x) != steps + 1 or len(self.sigma) != steps + 1:
            raise ShardCorruptError(
                f"{len(self.x)} latents and {len(self.sigma)} sigmas do not fit {steps} steps"
            )
        if len(self.conditioning) != len(self.pooled_conditioning):
            raise ShardCorruptError("conditioning and pooled_conditioning differ in batch")
        self._check_finite()


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityShard(PackedArrays):
    """One (layer, bits) over n samples: per-sample values, so that buckets can be re-weighted later."""

    image_index: Array
    """(n,) integers."""
    step_index: Array
    """(n,) integers."""
    squared_error: Array
    """(n,) float64: ||v_quantized - v||^2 of the guided velocity."""
    squared_reference: Array
    """(n,) float64: ||v||^2."""
    noise_squared_error: Array
    """(n,) float64: the same measurement with nothing but the last bits of a nearby layer's weight changed; 0
    in shards from before this was measured."""
    cosine: Array
    """(n,) float64, between v_quantized and v."""
    max_abs: Array
    """(n,) float64: largest |v_quantized - v|."""
    output_size: Array
    """() integer: elements of v, for the mean squared error."""
    dead: Array
    """() bool: this layer can't influence the output."""
    weight_squared_error: Array
    """() float64: ||W_quantized - W||^2."""
    weight_squared_norm: Array
    """() float64: ||W||^2."""
    bits_per_weight: Array
    """() float64: bits, plus what scales and biases cost."""

    _layout: ClassVar[dict[str, tuple[str, int]]] = {
        "image_index": (INTEGERS, 1),
        "step_index": (INTEGERS, 1),
        "squared_error": (FLOATS, 1),
        "squared_reference": (FLOATS, 1),
        "noise_squared_error": (FLOATS, 1),
        "cosine": (FLOATS, 1),
        "max_abs": (FLOATS, 1),
        "output_size": (INTEGERS, 0),
        "dead": (BOOLEANS, 0),
        "weight_squared_error": (FLOATS, 0),
        "weight_squared_norm": (FLOATS, 0),
        "bits_per_weight": (FLOATS, 0),
    }

    def _check(self) -> None:
        lengths = {len(getattr(self, name)) for name, (_, ndim) in self._layout.items() if ndim == 1}
        if len(lengths) != 1 or lengths == {0}:
            raise ShardCorruptError(f"per-sample arrays of lengths {sorted(lengths)}")
        self._check_finite()


@dataclass(frozen=True, slots=True, kw_only=True)
class SketchShard(PackedArrays):
    """One sample and P probes: what every layer at every bit width does to the probed output.

    L layers in the order of the model card, B bit widths.
    """

    image_index: Array
    """() integer."""
    step_index: Array
    """() integer."""
    bits: Array
    """(B,) integers."""
    products: Array
    """(L, B, P) float64: <G, W_quantized - W> with G = d<r, v>/dW for probe r; 0 where not measurable."""
    squared_reference: Array
    """() float64: ||v||^2 of the guided velocity."""
    output_size: Array
    """() integer: elements of v."""
    dead: Array
    """(L,) bool: no gradient reaches this layer from any probe."""
    measurable: Array
    """(L,) bool: False where the group size does not divide the layer's inputs."""
    weight_squared_error: Array
    """(L, B) float64: ||W_quantized - W||^2."""
    weight_squared_norm: Array
    """(L,) float64: ||W||^2."""
    bits_per_weight: Array
    """(L, B) float64: bits, plus what scales and biases cost."""

    _layout: ClassVar[dict[str, tuple[str, int]]] = {
        "image_index": (INTEGERS, 0),
        "step_index": (INTEGERS, 0),
        "bits": (INTEGERS, 1),
        "products": (FLOATS, 3),
        "squared_reference": (FLOATS, 0),
        "output_size": (INTEGERS, 0),
        "dead": (BOOLEANS, 1),
        "measurable": (BOOLEANS, 1),
        "weight_squared_error": (FLOATS, 2),
        "weight_squared_norm": (FLOATS, 1),
        "bits_per_weight": (FLOATS, 2),
    }

    def _check(self) -> None:
        layers, widths, probes = self.products.shape
        if probes == 0 or widths != len(self.bits) or self.weight_squared_error.shape != (layers, widths):
            raise ShardCorruptError(
                f"products of shape {self.products.shape} for {len(self.bits)} bit widths"
            )
        if self.bits_per_weight.shape != (layers, widths) or any(
            len(array) != layers for array in (self.dead, self.measurable, self.weight_squared_norm)
        ):
            raise ShardCorruptError("arrays of a sketch differ in their number of layers")
        self._check_finite()
