"""Choose the samples on which a sensitivity run measures, and pack them for the workers."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np

from producer.folder.calib_folder import CalibFolder
from shared.errors import InputError, SampleError
from shared.layout.npz import Array
from shared.layout.reader import OpenSample, open_samples, read_manifest
from shared.layout.sample_file import Latent, Sample
from shared.layout.sample_parts import join
from shared.layout.sample_set import SampleSet

PART_BYTES = 24 * 1024 * 1024
"""A part of an image is closed when its latents have more, unpacked. Smaller parts cost less memory here and
in Redis; no blob may be larger than `shared.stores.store.MAX_PORTABLE_BYTES`."""


class _Step(NamedTuple):
    """A step to measure on, and the one that follows it; None for the last step of an image."""

    step_index: int
    latent: Latent
    after: Latent | None


def select_samples(folder: CalibFolder, max_images: int, step_stride: int) -> SampleSet:
    """Return `select_parts` as one sample set."""
    return join(list(select_parts(folder, max_images, step_stride)))


def select_parts(folder: CalibFolder, max_images: int, step_stride: int) -> Iterator[SampleSet]:
    """Yield every `step_stride`-th sample of the first `max_images` collected images, image by image.

    An image of many steps comes in several parts. No other samples are read, and conditioning once an image.

    Raises:
        InputError: nothing has been collected yet.
        SampleError: a sample can't be read, or the conditioning of an image has another shape.
    """
    if not folder.manifest_path.exists():
        raise InputError(f"{folder.root} holds no samples yet; run `producer collect` first")
    sigmas = read_manifest(folder.root).extra.get("sigmas")
    first: Sample | None = None
    images = groupby(open_samples(folder.root, max_images), key=lambda sample: sample[0])
    for _, files in images:
        for part in _parts_of_image(files, step_stride, sigmas):
            first = first or part.sample
            _check_shapes(part.sample, first)
            yield part.samples
    if first is None:
        raise InputError(f"{folder.root} holds no samples yet; run `producer collect` first")


class _Part(NamedTuple):
    samples: SampleSet
    sample: Sample
    """One sample of the image, with its conditioning."""


def _parts_of_image(
    files: Iterable[tuple[int, int, OpenSample]], stride: int, sigmas: object
) -> Iterator[_Part]:
    sample: Sample | None = None
    steps: list[_Step] = []
    # The step before, if it is to be measured on: its follower is still to come.
    before: tuple[int, Latent] | None = None
    for image_index, index, file in files:
        follows = before is not None and index == before[0] + 1
        chosen = index % stride == 0
        latent = file.load_latent() if chosen or follows else None
        if before is not None:
            steps.append(_Step(*before, latent if follows else None))
        before = (index, latent) if chosen and latent is not None else None
        if chosen and sample is None:
            sample = file.load(image_index, index)
        if sample is not None and _size(steps) > PART_BYTES:
            yield _Part(_pack(steps, sample, sigmas), sample)
            steps = []
    if before is not None:
        steps.append(_Step(*before, None))
    if sample is not None and steps:
        yield _Part(_pack(steps, sample, sigmas), sample)


def _size(steps: list[_Step]) -> int:
    return 2 * sum(step.latent.x.nbytes for step in steps)


def _check_shapes(sample: Sample, first: Sample) -> None:
    shapes = [
        {name: array.shape for name, array in one.named_conditioning.items()} for one in (sample, first)
    ]
    if shapes[0] != shapes[1]:
        raise SampleError(
            f"{sample.path}: its conditioning has not the shape of that in {first.path}; measure on fewer "
            "images with --max-images"
        )


def _pack(steps: list[_Step], sample: Sample, sigmas: object) -> SampleSet:
    """Return some steps of one image as a sample set. `sample` brings the conditioning."""
    return SampleSet(
        x=np.concatenate([step.latent.x for step in steps]),
        timestep=_scalars([step.latent.timestep for step in steps]),
        sigma=_scalars([step.latent.sigma for step in steps]),
        x_next=np.concatenate(
            [step.after.x if step.after else np.zeros_like(step.latent.x) for step in steps]
        ),
        sigma_next=np.array(
            [
                _scalar(step.after.sigma) if step.after else _last_sigma(step.step_index, sigmas)
                for step in steps
            ],
            dtype=np.float32,
        ),
        has_next=np.array([step.after is not None for step in steps]),
        step_index=np.array([step.step_index for step in steps], dtype=np.int32),
        image=np.zeros(len(steps), dtype=np.int32),
        image_index=np.array([sample.image_index], dtype=np.int32),
        conditioning={name: array[None] for name, array in sample.named_conditioning.items()},
    )


def _last_sigma(step_index: int, sigmas: object) -> float:
    if isinstance(sigmas, list) and step_index + 1 < len(sigmas):
        return float(sigmas[step_index + 1])
    return 0.0


def _scalars(values: list[Array]) -> Array:
    return np.array([_scalar(value) for value in values], dtype=np.float32)


def _scalar(value: Array) -> float:
    return float(value.reshape(-1)[0])
