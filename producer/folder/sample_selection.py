"""Choose the samples on which a sensitivity run measures, and pack them for the workers."""

from collections import defaultdict
from itertools import pairwise

import numpy as np

from producer.folder.calib_folder import CalibFolder
from shared.choices import DEFAULT_STEPS_PER_IMAGE
from shared.errors import InputError, SampleError
from shared.layout.npz import Array
from shared.layout.reader import read_manifest, read_samples
from shared.layout.sample_file import Sample
from shared.layout.sample_set import SampleSet


def default_step_stride(num_steps: int) -> int:
    """Return a stride that leaves about ten steps of each image, from early to late."""
    return max(1, num_steps // DEFAULT_STEPS_PER_IMAGE)


def select_samples(folder: CalibFolder, max_images: int, step_stride: int) -> SampleSet:
    """Return every `step_stride`-th sample of the first `max_images` collected images.

    Raises:
        InputError: nothing has been collected yet.
        SampleError: a sample can't be read.
    """
    if not folder.manifest_path.exists():
        raise InputError(f"{folder.root} holds no samples yet; run `producer collect` first")
    sigmas = read_manifest(folder.root).extra.get("sigmas")
    by_image: dict[int, list[Sample]] = defaultdict(list)
    for sample in read_samples(folder.root, max_images=max_images):
        by_image[sample.image_index].append(sample)
    if not by_image:
        raise InputError(f"{folder.root} holds no samples yet; run `producer collect` first")
    chosen: list[tuple[int, Sample, Sample | None]] = []
    for image, steps in enumerate(by_image.values()):
        chosen += _chosen_steps(image, steps, step_stride)
    firsts = [steps[0] for steps in by_image.values()]
    return _pack(chosen, firsts, sigmas)


def _chosen_steps(image: int, steps: list[Sample], stride: int) -> list[tuple[int, Sample, Sample | None]]:
    followers: list[Sample | None] = [
        after if after.step_index == before.step_index + 1 else None for before, after in pairwise(steps)
    ]
    return [
        (image, sample, after)
        for sample, after in zip(steps, [*followers, None], strict=True)
        if sample.step_index % stride == 0
    ]


def _pack(chosen: list[tuple[int, Sample, Sample | None]], firsts: list[Sample], sigmas: object) -> SampleSet:
    samples = [sample for _, sample, _ in chosen]
    nexts = [after for _, _, after in chosen]
    return SampleSet(
        x=np.concatenate([sample.x for sample in samples]),
        timestep=_scalars([sample.timestep for sample in samples]),
        sigma=_scalars([sample.sigma for sample in samples]),
        x_next=np.concatenate(
            [
                after.x if after else np.zeros_like(sample.x)
                for sample, after in zip(samples, nexts, strict=True)
            ]
        ),
        sigma_next=np.array(
            [
                _scalar(after.sigma) if after else _last_sigma(sample, sigmas)
                for sample, after in zip(samples, nexts, strict=True)
            ],
            dtype=np.float32,
        ),
        has_next=np.array([after is not None for after in nexts]),
        step_index=np.array([sample.step_index for sample in samples], dtype=np.int32),
        image=np.array([image for image, _, _ in chosen], dtype=np.int32),
        image_index=np.array([first.image_index for first in firsts], dtype=np.int32),
        conditioning=_stack_conditioning(firsts),
    )


def _stack_conditioning(firsts: list[Sample]) -> dict[str, Array]:
    """Return the conditioning of all images, (m, B, ...)."""
    first = firsts[0].named_conditioning
    for sample in firsts:
        other = sample.named_conditioning
        if {name: array.shape for name, array in other.items()} != {n: a.shape for n, a in first.items()}:
            raise SampleError(
                f"{sample.path}: its conditioning has not the shape of that in {firsts[0].path}; "
                "measure on fewer images with --max-images"
            )
    return {name: np.stack([sample.named_conditioning[name] for sample in firsts]) for name in first}


def _last_sigma(sample: Sample, sigmas: object) -> float:
    if isinstance(sigmas, list) and sample.step_index + 1 < len(sigmas):
        return float(sigmas[sample.step_index + 1])
    return 0.0


def _scalars(values: list[Array]) -> Array:
    return np.array([_scalar(value) for value in values], dtype=np.float32)


def _scalar(value: Array) -> float:
    return float(value.reshape(-1)[0])
