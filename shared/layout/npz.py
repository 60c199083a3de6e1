"""NPZ in memory. Nothing in a file is trusted: limits are checked before anything is decompressed.

Here and in the tasks, numpy is imported by those who touch an array: `producer status` names tasks alone.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shared.errors import ShardCorruptError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]
else:
    Array = Any

MAX_MEMBERS = 64
MAX_UNPACKED_BYTES = 2 * 1024**3


def pack(arrays: Mapping[str, Array]) -> bytes:
    """Return the arrays as the bytes of an NPZ. Equal arrays give equal bytes."""
    import numpy as np
    from numpy.lib import format as npy

    buffer = io.BytesIO()
    # Level 1 packs zeros, which stand for a missing T5, as well as higher levels, in a fifth of the time.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            # Opening by name takes the archive's compression and stores no time.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
    return buffer.getvalue()


def unpack(data: bytes, *, max_bytes: int = MAX_UNPACKED_BYTES) -> dict[str, Array]:
    """Return the arrays of an NPZ.

    Raises:
        ShardCorruptError: this is no NPZ, it holds pickled objects, or it unpacks to more than `max_bytes`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read_members(archive, max_bytes)
    except ShardCorruptError:
        raise
    except Exception as error:  # noqa: BLE001 - hostile bytes raise nearly everything, zlib.error included
        raise ShardCorruptError(f"not a readable NPZ: {error}") from None


def _read_members(archive: zipfile.ZipFile, max_bytes: int) -> dict[str, Array]:
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise ShardCorruptError(f"NPZ with {len(members)} members; at most {MAX_MEMBERS} are allowed")
    total = sum(member.file_size for member in members)
    if total > max_bytes:
        raise ShardCorruptError(f"NPZ of {total} bytes unpacked; at most {max_bytes} are allowed")
    arrays: dict[str, Array] = {}
    for member in members:
        # zipfile unpacks these two piece by piece up to the stated size, others all at once.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ShardCorruptError(f"{member.filename}: compressed in a way that is not allowed")
        name = member.filename.removesuffix(".npy")
        if name == member.filename or not _is_name(name) or name in arrays:
            raise ShardCorruptError(f"NPZ with an unexpected member {member.filename!r}")
        arrays[name] = _read_member(archive, member)
    return arrays


def _is_name(name: str) -> bool:
    """Return whether this is a Python identifier, or two with a dot between them."""
    return name.count(".") <= 1 and all(part.isidentifier() for part in name.split("."))


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    import numpy as np
    from numpy.lib import format as npy

    with archive.open(member) as packed:
        raw = packed.read(member.file_size)
    # zipfile checks the checksum only at the end of the compressed data, which it never reaches if the stated
    # sizes are wrong.
    if len(raw) != member.file_size or zlib.crc32(raw) != member.CRC:
        raise ShardCorruptError(f"{member.filename}: its contents differ from its checksum")
    file = io.BytesIO(raw)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ShardCorruptError(f"{member.filename}: NPY version {version} is not allowed")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject:
        raise ShardCorruptError(f"{member.filename}: pickled objects are not allowed")
    if any(size < 0 for size in shape):
        raise ShardCorruptError(f"{member.filename}: a negative size in its shape")
    start = file.tell()
    # The header may be false, and numpy would reserve the memory that it states before reading a byte.
    expected = dtype.itemsize * int(np.prod(shape, dtype=object))
    if len(raw) - start != expected:
        raise ShardCorruptError(f"{member.filename}: its header promises {expected} bytes, it has others")
    flat = np.frombuffer(raw, dtype=dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran_order else "C")
