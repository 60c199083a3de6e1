"""Renders scenes: flat shapes with soft edges, placed with some freedom."""

from typing import Any

import numpy as np

from training.grammar import Scene

Array = np.ndarray[Any, np.dtype[Any]]

IMAGE_SIZE = 64
RGB = {
    "red": (0.86, 0.12, 0.12),
    "green": (0.10, 0.66, 0.20),
    "blue": (0.12, 0.25, 0.88),
    "yellow": (0.95, 0.82, 0.10),
    "black": (0.04, 0.04, 0.04),
    "grey": (0.50, 0.50, 0.50),
    "white": (0.96, 0.96, 0.96),
}
RADIUS = {"small": 7.5, "large": 12.5}
"""Pixels; of the circle. Other shapes cover about as much."""

_NEAR, _MID, _FAR = 17.0, 32.0, 47.0
_CENTRES = {
    "middle": ((_MID, _MID),),
    "left": ((_NEAR, _MID), (_FAR, _MID)),
    "right": ((_FAR, _MID), (_NEAR, _MID)),
    "top": ((_MID, _NEAR),),
    "bottom": ((_MID, _FAR),),
    "above": ((_MID, _NEAR), (_MID, _FAR)),
    "below": ((_MID, _FAR), (_MID, _NEAR)),
}
_JITTER = 2.5
_grid = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5


def render(scene: Scene, rng: np.random.Generator) -> Array:
    """(64, 64, 3) float32 in [0, 1]; `rng` moves things by a few pixels and varies their radius a little."""
    picture = np.broadcast_to(np.float32(RGB[scene.background]), (IMAGE_SIZE, IMAGE_SIZE, 3)).copy()
    for thing, centre in zip(scene.things, _CENTRES[scene.where], strict=False):
        x, y = np.asarray(centre) + rng.uniform(-_JITTER, _JITTER, 2)
        alpha = coverage(thing.shape, x, y, RADIUS[thing.size] * rng.uniform(0.93, 1.07))[..., None]
        picture = picture * (1 - alpha) + alpha * np.float32(RGB[thing.colour])
    return picture


def render_all(scenes: list[Scene], *, seed: int) -> Array:
    """(n, 64, 64, 3) uint8; each picture from its own stream."""
    pictures = [render(scene, np.random.default_rng([seed, index])) for index, scene in enumerate(scenes)]
    return np.round(np.stack(pictures) * 255).astype(np.uint8)


def coverage(shape: str, x: float, y: float, radius: float) -> Array:
    """(64, 64) float32: how much of each pixel the shape covers, from its signed distance."""
    dx, dy = np.float32(_grid[None, :] - x), np.float32(_grid[:, None] - y)
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.89 * radius
    elif shape == "triangle":
        # Equilateral, point up, centred on its bounding box.
        half = 1.25 * radius
        slanted = (np.abs(dx) * 2 - dy - 0.866 * half) / np.sqrt(5.0)
        distance = np.maximum(slanted, dy - 0.866 * half)
    elif shape == "cross":
        arm, width = 1.15 * radius, 0.36 * radius
        upright = np.maximum(np.abs(dx) - width, np.abs(dy) - arm)
        lying = np.maximum(np.abs(dx) - arm, np.abs(dy) - width)
        distance = np.minimum(upright, lying)
    else:
        raise ValueError(f"no shape named {shape!r}")
    covered: Array = np.clip(0.5 - distance, 0, 1).astype(np.float32)
    return covered
