"""How far two decoded pictures are apart."""

import io

import numpy as np
from PIL import Image

from shared.layout.npz import Array
from shared.metrics import MAX_PSNR_DB

_LARGEST = 255


def picture(png: bytes) -> Array:
    """Return the picture (H, W, 3) uint8 of a PNG."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def picture_psnr_db(picture: Array, original: Array) -> float:
    """Return the PSNR of (H, W, 3) uint8 in dB; `MAX_PSNR_DB` where they are equal."""
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(picture, original):
        return MAX_PSNR_DB
    decibel: float = peak_signal_noise_ratio(  # type: ignore[no-untyped-call]
        original, picture, data_range=_LARGEST
    )
    return float(decibel)


def ssim(picture: Array, original: Array) -> float:
    """Return the mean structural similarity of (H, W, 3) uint8, at least 11 pixels wide and high.

    With the Gaussian window of Wang et al. 2004, each channel by itself.
    """
    from skimage.metrics import structural_similarity

    similarity: float = structural_similarity(  # type: ignore[no-untyped-call]
        original,
        picture,
        data_range=_LARGEST,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(similarity)
