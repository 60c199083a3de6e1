"""A sample set in parts, because no blob may be large: one part an image, more for an image of many steps.

A part is a sample set by itself. The list of the parts' digests is a blob too, and its own digest names the
whole set. A set of an older revision is one blob, an NPZ, named by its digest as well.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shared.errors import ShardCorruptError
from shared.layout.sample_index import decode_index
from shared.layout.sample_set import SampleSet


def read_sample_set(digest: str, blob: Callable[[str], bytes]) -> SampleSet:
    """Return a whole sample set.

    Args:
        digest: names the set.
        blob: returns the bytes with a given sha256.

    Raises:
        ShardCorruptError: a blob is no sample set, or the parts don't fit together.
    """
    data = blob(digest)
    index = decode_index(data)
    if index is None:
        return SampleSet.from_bytes(data)
    return join([SampleSet.from_bytes(blob(part)) for part in index.parts])


def join(parts: Sequence[SampleSet]) -> SampleSet:
    """Return one sample set of all parts. Parts of one image that follow each other become one image again.

    Raises:
        ShardCorruptError: the arrays of two parts differ in shape.
    """
    new = [
        number == 0 or not np.array_equal(part.image_index, parts[number - 1].image_index)
        for number, part in enumerate(parts)
    ]
    places = np.cumsum(new) - 1
    images = [part for part, is_new in zip(parts, new, strict=True) if is_new]
    if any(len(part.image_index) != 1 for part in parts):
        raise ShardCorruptError("not a sample set: a part of it has several images")
    of_images = {"image_index", "conditioning"}
    try:
        arrays = {
            name: _concatenate([getattr(part, name) for part in (images if name in of_images else parts)])
            for name in SampleSet._layout
        }
    except (KeyError, ValueError) as error:
        raise ShardCorruptError(f"the parts of a sample set don't fit together: {error}") from None
    arrays["image"] = np.repeat(places, [len(part) for part in parts]).astype(np.int32)
    return SampleSet(**arrays)


def _concatenate(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return {name: np.concatenate([value[name] for value in values]) for name in values[0]}
    return np.concatenate(values)
