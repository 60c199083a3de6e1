"""Read a calibration directory, for notebooks and other programs. It needs only numpy.

    for sample in read_samples("calibration_data", max_images=10, step_stride=5):
        print(sample.image_index, sample.step_index, sample.x.shape)

The directory holds a manifest.json and one NPZ per sample; other programs' variants are read too. Where it
keeps the shards of its images, samples are read out of these, and no sample need have a file of its own.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from shared.errors import SampleError
from shared.layout.sample_file import Sample, SampleFile
from shared.layout.shard_file import ShardFile, ShardStep

MANIFEST_NAME = "manifest.json"

OpenSample = SampleFile | ShardStep

_STEP_NUMBER = re.compile(r"step[\W_]*(\d+)", re.IGNORECASE)
_IMAGE_NUMBER = re.compile(r"(?:image|img|prompt|sample)[\W_]*(\d+)", re.IGNORECASE)
_NUMBER_BEFORE_STEP = re.compile(r"(?<![A-Za-z0-9])(\d+)[\W_]*step", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The list of what has been collected."""

    n_completed: int
    """Number of complete images."""
    num_steps: int
    """Denoising steps per image."""
    sample_files: tuple[str, ...] | None
    """Paths relative to the directory; None if the manifest does not list them."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """All other keys, unchanged."""


def read_manifest(calib_dir: str | Path) -> Manifest:
    """Return the manifest of a calibration directory.

    Raises:
        SampleError: there is no manifest, it is not JSON, or a key is missing or has the wrong type.
    """
    path = Path(calib_dir) / MANIFEST_NAME
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SampleError(f"{path}: not a readable manifest: {error}") from None
    if not isinstance(content, dict):
        raise SampleError(f"{path}: a JSON object belongs there, not {type(content).__name__}")
    files = content.pop("sample_files", None)
    if files is not None and not (isinstance(files, list) and all(isinstance(f, str) for f in files)):
        raise SampleError(f"{path}: 'sample_files' is not a list of paths")
    return Manifest(
        n_completed=_count(content.pop("n_completed", None), path, "n_completed", least=0),
        num_steps=_count(content.pop("num_steps", None), path, "num_steps", least=1),
        sample_files=None if files is None else tuple(files),
        extra=content,
    )


def read_samples(
    calib_dir: str | Path, max_images: int | None = None, step_stride: int = 1
) -> Iterator[Sample]:
    """Yield the samples of a directory, image by image and step by step. Each is read when it is needed.

    The files are those of the manifest's `sample_files`, else `samples/*.npz`, else `*.npz`. If every name
    holds an image number and a step number, these decide the order. Otherwise the manifest's order is kept,
    or names are sorted by their numbers; the next image begins where the step index starts again. An image
    whose shard the manifest names, and which is there, is read out of that: it has all steps.

    Args:
        calib_dir: the directory; it may lack a manifest.
        max_images: read only this many images, from the first; None reads all.
        step_stride: read only steps whose index is a multiple of this.

    Raises:
        SampleError: a file is damaged; the message names it. For a sample it is raised when that is read.
    """
    if step_stride < 1:
        raise SampleError(f"step_stride is {step_stride}; it must be 1 or more")
    return (
        opened.load(image_index, step_index)
        for image_index, step_index, opened in open_samples(calib_dir, max_images)
        if step_index % step_stride == 0
    )


def open_samples(
    calib_dir: str | Path, max_images: int | None = None
) -> Iterator[tuple[int, int, OpenSample]]:
    """Yield image index, step index and the open sample of each, in the order of `read_samples`.

    Each file is closed when the next one is asked for.

    Raises:
        SampleError: as `read_samples`.
    """
    if max_images is not None and max_images < 0:
        raise SampleError(f"max_images is {max_images}; it can't be negative")
    root = Path(calib_dir)
    manifest = read_manifest(root) if (root / MANIFEST_NAME).exists() else None
    names = _sample_names(root, manifest)
    numbers = [_numbers_in_name(name) for name in names]
    shards = _shards(root, manifest) if manifest else {}
    if shards or all(pair is not None for pair in numbers):
        files = dict[int, list[str]]()
        for pair, name in sorted((pair, name) for pair, name in zip(numbers, names, strict=True) if pair):
            files.setdefault(pair[0], []).append(name)
        return _open_named(root, files, shards, max_images)
    return _open_counted(root, names, manifest.num_steps if manifest else None, max_images)


def _shards(root: Path, manifest: Manifest) -> dict[int, str]:
    """Return, by image, the shards that a manifest of ours names; in those of others `images` is anything."""
    images = manifest.extra.get("images")
    return {
        image["image_index"]: _inside(root, image["shard"])
        for image in (images if isinstance(images, list) else [])
        if isinstance(image, dict)
        and isinstance(image.get("image_index"), int)
        and isinstance(image.get("shard"), str)
    }


def _count(value: object, path: Path, key: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SampleError(f"{path}: {key!r} is {value!r}; an integer of at least {least} belongs there")
    return value


def _sample_names(root: Path, manifest: Manifest | None) -> list[str]:
    if manifest is not None and manifest.sample_files is not None:
        return [_inside(root, name) for name in manifest.sample_files]
    for pattern in ("samples/*.npz", "*.npz"):
        if names := [path.relative_to(root).as_posix() for path in root.glob(pattern)]:
            return sorted(names, key=_natural_key)
    if manifest is None:
        raise SampleError(
            f"{root}: no {MANIFEST_NAME}, no samples/*.npz and no *.npz; is it the right place?"
        )
    return []


def _inside(root: Path, name: str) -> str:
    # Check both styles: a manifest may come from Windows, and must not point outside here either.
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or path.drive or path.root or ".." in path.parts or not path.parts:
            raise SampleError(f"{root / MANIFEST_NAME}: sample file {name!r} does not lie in {root}")
    return name


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sorting key that puts step-9 before step-10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _numbers_in_name(name: str) -> tuple[int, int] | None:
    """Return (image, step) from a name such as samples/image-00003-step-017.npz; None if one is missing."""
    step = _STEP_NUMBER.search(name)
    image = _IMAGE_NUMBER.search(name) or _NUMBER_BEFORE_STEP.search(name)
    return (int(image[1]), int(step[1])) if image and step else None


def _open_named(
    root: Path, files: Mapping[int, list[str]], shards: Mapping[int, str], max_images: int | None
) -> Iterator[tuple[int, int, OpenSample]]:
    for image_index in sorted({*files, *shards})[:max_images]:
        shard = root / shards[image_index] if image_index in shards else None
        # A folder of samples may have been copied without its shards.
        if shard and (shard.exists() or image_index not in files):
            with ShardFile(shard) as opened:
                for step in opened.steps():
                    yield image_index, step.step_index, step
            continue
        for name in files[image_index]:
            with SampleFile(root / name) as file:
                yield image_index, file.step_index, file


def _open_counted(
    root: Path, names: list[str], num_steps: int | None, max_images: int | None
) -> Iterator[tuple[int, int, SampleFile]]:
    image_index, previous = 0, -1
    for name in names:
        with SampleFile(root / name) as opened:
            step_index = opened.step_index
            if num_steps is not None and step_index >= num_steps:
                # Some programs count steps over the whole calibration.
                image_index, step_index = divmod(step_index, num_steps)
            elif step_index <= previous:
                image_index += 1
            previous = step_index
            if max_images is not None and image_index >= max_images:
                return
            yield image_index, step_index, opened
