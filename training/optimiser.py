"""What both trainings share: the learning rate's course, averaged weights, and checkpoints to resume from."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn, optimizers
from mlx.utils import tree_flatten, tree_map, tree_unflatten

Schedule = Callable[[float], float]
"""Share of the peak learning rate, by progress from 0 to 1."""


def cosine(progress: float) -> float:
    """Half a cosine, down to a hundredth."""
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def plateau(progress: float) -> float:
    """All of it, and from 70% on a line down to a hundredth: up to there, longer trainings are alike."""
    return max(0.01, min(1.0, (1 - progress) / 0.3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train one part."""

    steps: int
    peak: float
    """Of the learning rate."""
    warmup: int
    """Steps of a linear start."""
    schedule: Schedule
    ema: float
    """How much of the averaged weights a step keeps."""

    def learning_rate(self, step: int) -> float:
        """At one step."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        return self.peak * self.schedule((step - self.warmup) / max(1, self.steps - self.warmup))


class TrainingState:
    """A module, its AdamW state and its averaged weights (EMA), saved together."""

    def __init__(self, module: nn.Module, folder: Path, recipe: Recipe) -> None:
        self.module = module
        self.folder = folder
        self.recipe = recipe
        self.optimizer = optimizers.AdamW(learning_rate=recipe.peak, betas=[0.9, 0.99], weight_decay=0.01)
        self.optimizer.init(module.trainable_parameters())
        self.average = tree_map(lambda value: value + 0, module.trainable_parameters())
        self.step = 0
        self.seconds = 0.0
        self._clock = time.monotonic()

    def update(self, gradients: Any) -> float:
        """One AdamW step with clipped gradients; returns the gradient's norm."""
        self.optimizer.learning_rate = self.recipe.learning_rate(self.step)
        gradients, norm = optimizers.clip_grad_norm(gradients, 1.0)
        self.optimizer.update(self.module, gradients)
        # Early on the average would still hold the random start.
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        self.average = tree_map(
            lambda mean, value: keep * mean + (1 - keep) * value,
            self.average,
            self.module.trainable_parameters(),
        )
        mx.eval(self.module.parameters(), self.optimizer.state, self.average)
        self.step += 1
        return float(norm.item())

    def save(self) -> None:
        """Write everything needed to go on; the step's number, written last, makes it count."""
        self.folder.mkdir(parents=True, exist_ok=True)
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        trees = {"weights": self.module.parameters(), "adamw": self.optimizer.state, "average": self.average}
        for name, tree in trees.items():
            temporary = self.folder / f"{name}.new.safetensors"
            mx.save_safetensors(str(temporary), dict(tree_flatten(tree)))
            temporary.replace(self.folder / f"{name}.safetensors")
        (self.folder / "step.json").write_text(json.dumps({"step": self.step, "seconds": self.seconds}))

    def resume(self) -> bool:
        """Go on from the last save, if there is one."""
        if not (self.folder / "step.json").exists():
            return False
        progress = json.loads((self.folder / "step.json").read_text())
        self.step, self.seconds = progress["step"], progress["seconds"]
        loaded = {
            name: tree_unflatten(list(mx.load(str(self.folder / f"{name}.safetensors")).items()))
            for name in ("weights", "adamw", "average")
        }
        self.module.update(loaded["weights"])
        self.optimizer.state = loaded["adamw"]
        self.average = loaded["average"]
        return True
