"""How often an interval holds the true relative error, for images whose squared error is log-normal.

python -m benchmarks.coverage
"""

import math

import numpy as np

from shared.metrics import relative_error_interval

DRAWS = 20_000
SCATTERS = (0.3, 0.6, 1.0)
"""Standard deviations of the logarithm of an image's squared error over its squared reference."""


def coverage(images: int, scatter: float) -> float:
    """Share of draws of so many images whose 95% interval holds the value of all images."""
    rng = np.random.default_rng(1)
    references = rng.lognormal(0, 0.3, (DRAWS, images))
    errors = references * rng.lognormal(0, scatter, (DRAWS, images))
    low, high = relative_error_interval(errors, references, np.arange(images))
    truth = math.exp(scatter**2 / 4)
    return float(np.mean((low <= truth) & (truth <= high)))


def main() -> None:
    """Print a table of images by scatter."""
    print("images", *SCATTERS, sep="\t")
    for images in (4, 8, 16, 32):
        print(images, *(f"{coverage(images, scatter):.1%}" for scatter in SCATTERS), sep="\t")


if __name__ == "__main__":
    main()
