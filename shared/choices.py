"""What a user can choose from, and the defaults. All other modules import them from here."""

from collections.abc import Iterable
from typing import Literal

from shared.errors import InputError

BITS = (1, 2, 3, 4, 5, 6, 8)
"""Bit widths that `mlx.core.quantize` offers; 1 since MLX 0.32.4."""
GROUP_SIZES = (32, 64, 128)
"""Group sizes that `mlx.core.quantize` offers."""

SampleFiles = Literal["all", "needed", "none"]
"""Which steps of an image get a sample file when it is collected: all, those that are measured on by default,
or none. Unless all do, the image's shard is kept."""

DEFAULT_MODEL = "argmaxinc/mlx-stable-diffusion-3-medium"
DEFAULT_NUM_IMAGES = 100
DEFAULT_BITS = (2, 3, 4, 5, 6, 8)
DEFAULT_GROUP_SIZE = 64
DEFAULT_MAX_IMAGES = 8
"""Images to measure on."""
DEFAULT_STEPS_PER_IMAGE = 10
"""Steps of each image to measure on, roughly: a step stride is chosen that leaves about so many."""
DEFAULT_PROBES = 8
"""Random probes per sample of a sketch."""


def check_bits(bits: Iterable[int]) -> list[int]:
    """Return the bit widths in rising order, each once.

    Raises:
        InputError: MLX can't quantize to one of them.
    """
    asked = sorted(set(bits))
    for width in asked:
        if width not in BITS:
            offered = ", ".join(map(str, BITS))
            raise InputError(f"MLX can't quantize to {width} bits; it offers {offered}")
    return asked
