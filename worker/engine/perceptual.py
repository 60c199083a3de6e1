"""The learned perceptual distance LPIPS, where its package and weights are at hand. Nothing is downloaded."""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from shared.layout.npz import Array

Distance = Callable[[Array, Array], float]
"""From two pictures (H, W, 3) uint8 to their distance."""

TRUNK = "alexnet-owt-7be5be79.pth"
"""The weights that torchvision keeps in the folder of torch.hub, and lpips builds on."""


@cache
def perceptual_distance() -> Distance | None:
    """Return LPIPS with the AlexNet trunk (Zhang et al. 2018); None if it is not at hand.

    It is at hand where the packages lpips and torchvision are installed, and torch.hub's folder holds the
    trunk.
    """
    if any(importlib.util.find_spec(name) is None for name in ("lpips", "torchvision")):
        return None
    import torch

    if not (Path(torch.hub.get_dir()) / "checkpoints" / TRUNK).is_file():
        return None
    import lpips

    model = lpips.LPIPS(net="alex", verbose=False).eval()

    def distance(picture: Array, original: Array) -> float:
        tensors = [
            torch.from_numpy(one.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
            for one in (picture, original)
        ]
        with torch.no_grad():
            return float(model(*tensors))

    return distance
