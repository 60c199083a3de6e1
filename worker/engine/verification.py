"""Running a verification task: one prompt is drawn by the original model and by all variants."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from shared.errors import OverflowsError, TaskRefusedError
from shared.kinds.verification import VerificationShard, VerificationTask
from shared.layout.npz import Array
from shared.plan import Variant
from worker.engine.batches import guided_velocity
from worker.engine.perceptual import perceptual_distance
from worker.engine.pictures import picture, picture_psnr_db, ssim
from worker.engine.trajectory import follow
from worker.engine.variants import as_variant
from worker.families.family import Conditioning, Family
from worker.jobs.failures import is_metal_error

logger = logging.getLogger("bitfleet.worker")

Check = Callable[[str], None]
Direction = Callable[[mx.array, mx.array], mx.array]


def verify(
    task: VerificationTask, variants: Sequence[Variant], family: Family, check: Check
) -> VerificationShard:
    """Draw the task's prompt with all variants, one after the other, from the same first latent.

    Raises:
        TaskRefusedError: the first variant is not the original, the original overflows, or a variant names a
            layer that can't be quantized like this.
    """
    if variants[0].layers:
        raise TaskRefusedError(f"the first variant, {variants[0].name!r}, is to be the original: no layers")
    family.hold("text_encoder", "transformer")
    start = _Start.of(task, family)
    original = np.concatenate(start.draw(check, variants[0].name))
    drawn = [_Drawn.original(original)]
    for variant in variants[1:]:
        with as_variant(family.transformer, variant):
            drawn.append(_draw_variant(start, variant, original, check))
    floor = 0.0
    if task.floor:
        again = start.draw(check, "original with its rows swapped", start.direction_of_swapped_rows)
        floor = _squared(np.array(again[-1]) - original[-1])
    check("decoding the images")
    return VerificationShard(
        image_index=np.array(task.image_index),
        squared_error=np.array([one.squared_error for one in drawn]),
        overflows=np.array([one.final is None for one in drawn]),
        peak=np.array(_peak(original[-1])),
        squared_reference=np.array(_squared(original[-1])),
        output_size=np.array(original[-1].size),
        velocity_error=np.stack([one.velocity_error for one in drawn]),
        has_floor=np.array(task.floor),
        floor_squared_error=np.array(floor),
        **_compare_pictures(task, family, [one.final for one in drawn]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """What all variants of a prompt have in common."""

    family: Family
    conditioning: Conditioning
    cfg_weight: float
    sigmas: mx.array
    x: mx.array
    """(1, H, W, C) float32: the first latent."""

    @classmethod
    def of(cls, task: VerificationTask, family: Family) -> "_Start":
        settings = task.verification
        sigmas = family.sigmas(settings.num_steps)
        return cls(
            family=family,
            conditioning=family.encode(task.prompt, settings.cfg_weight),
            cfg_weight=settings.cfg_weight,
            sigmas=sigmas,
            x=family.first_latent(task.seed, sigmas, settings.latent_size),
        )

    def draw(self, check: Check, name: str, direction: Direction | None = None) -> list[Array]:
        """Return N + 1 latents (1, H, W, C) float32."""

        def tell(progress: str) -> None:
            check(f"{name}, {progress}")

        latents = follow(direction or self.direction, self.x, self.sigmas, self.family.dtype, tell)
        return [np.array(latent) for latent in latents]

    def direction(self, x_t: mx.array, sigma: mx.array) -> mx.array:
        return self.family.direction(x_t, sigma, self.conditioning, self.cfg_weight)

    def direction_of_swapped_rows(self, x_t: mx.array, sigma: mx.array) -> mx.array:
        """The same velocity but for rounding: its rows stand elsewhere in the batch.

        With CFG the two rows are swapped. Without, the one row stands beside a copy of itself.
        """
        if self.cfg_weight > 0:
            conditioning = {name: rows[::-1] for name, rows in self.conditioning.items()}
        else:
            conditioning = {name: mx.repeat(rows, 2, axis=0) for name, rows in self.conditioning.items()}
        x = mx.repeat(x_t, 2, axis=0).astype(self.family.dtype)
        velocity = self.family.velocity(x, mx.broadcast_to(sigma, [2]), conditioning)
        back = velocity[::-1] if self.cfg_weight > 0 else velocity[1:]
        return guided_velocity(back, self.cfg_weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """One variant's image, held against the original's."""

    squared_error: float
    velocity_error: Array
    """(N,) float64."""
    final: Array | None
    """(1, H, W, C): the final latent; None if the variant overflows."""

    @classmethod
    def original(cls, latents: Array) -> "_Drawn":
        """`latents` are (N + 1, H, W, C)."""
        return cls(squared_error=0.0, velocity_error=np.zeros(len(latents) - 1), final=latents[-1:])


def _draw_variant(start: _Start, variant: Variant, original: Array, check: Check) -> _Drawn:
    try:
        latents = np.concatenate(start.draw(check, variant.name))
    except OverflowsError as error:
        logger.warning("%s: %s", variant.name, error)
        final = original[-1]
        return _Drawn(
            squared_error=final.size * _peak(final) ** 2,
            velocity_error=np.ones(len(original) - 1),
            final=None,
        )
    return _Drawn(
        squared_error=_squared(latents[-1] - original[-1]),
        velocity_error=_velocity_errors(latents, original),
        final=latents[-1:],
    )


def _velocity_errors(latents: Array, original: Array) -> Array:
    """Relative squared error of each step, whose length says nothing: it is the same for both."""
    steps, own = (np.diff(each.astype(np.float64), axis=0) for each in (latents, original))
    return np.array([_squared(a - b) / _squared(b) for a, b in zip(steps, own, strict=True)])


def _squared(difference: Array) -> float:
    return float(np.square(difference, dtype=np.float64).sum())


def _peak(latent: Array) -> float:
    return float(latent.max()) - float(latent.min())


def _compare_pictures(
    task: VerificationTask, family: Family, latents: Sequence[Array | None]
) -> dict[str, Array]:
    """Decode all final latents and compare the pictures. A failure costs the pictures, not the task."""
    try:
        family.hold("vae")
        pngs = [b"" if latent is None else family.decode(mx.array(latent)) for latent in latents]
        return _compared(pngs, task.shown)
    except Exception as error:
        if is_metal_error(error):
            raise
        logger.warning("%s has no pictures, its latents are compared all the same: %s", task.label, error)
        return _compared([b""] * len(latents), 0)
    finally:
        # The next prompt needs the rest of the model, and its memory.
        family.keep_only("text_encoder", "transformer")


def _compared(pngs: Sequence[bytes], shown: int) -> dict[str, Array]:
    pictures = [picture(png) if png else None for png in pngs]
    original = pictures[0]
    kept = [png if index < shown else b"" for index, png in enumerate(pngs)]
    lpips = perceptual_distance()

    def each(compare: Callable[[Array, Array], float], without: float = 0.0) -> Array:
        return np.array(
            [without if one is None or original is None else compare(one, original) for one in pictures]
        )

    return {
        "has_images": np.array(original is not None),
        "image_psnr_db": each(picture_psnr_db),
        "ssim": each(ssim),
        "lpips": each(lpips, 1.0) if lpips and original is not None else np.zeros(0),
        "image_png": np.frombuffer(b"".join(kept), dtype=np.uint8),
        "image_png_size": np.array([len(png) for png in kept]),
    }
