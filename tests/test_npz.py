"""NPZ bytes from strangers: read back exactly, or refused as ShardCorruptError, never anything else."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib import format as npy

from shared.errors import ShardCorruptError
from shared.layout import npz
from shared.layout.npz import Array

SMALL = {
    "x": np.arange(6, dtype=np.float16).reshape(1, 2, 3),
    "step_index": np.array(3),
    "flag": np.array([True, False]),
}
DTYPES = st.sampled_from(["f2", "f4", "f8", "i1", "i4", "i8", "u1", "u8", "?", ">f4", "c8", "S3", "U2"])
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def npy_bytes(array: Array, **kwargs: object) -> bytes:
    buffer = io.BytesIO()
    npy.write_array(buffer, array, **kwargs)  # type: ignore[arg-type]
    return buffer.getvalue()


def npy_with_header(header: str, content: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin1") + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + content


class TestRoundTrip:
    @given(st.data())
    def test_any_plain_array(self, data: st.DataObject) -> None:
        array = data.draw(hnp.arrays(data.draw(DTYPES), data.draw(SHAPES)))
        back = npz.unpack(npz.pack({"x": array}))["x"]
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert back.tobytes() == array.tobytes()

    def test_orders_and_views(self) -> None:
        base = np.arange(24.0).reshape(2, 3, 4)
        for array in (np.asfortranarray(base), base[:, ::-1], base.T, base[0, :, 1]):
            np.testing.assert_array_equal(npz.unpack(npz.pack({"x": array}))["x"], array)

    def test_equal_arrays_give_equal_bytes(self) -> None:
        assert npz.pack(SMALL) == npz.pack({name: array.copy() for name, array in SMALL.items()})

    def test_numpy_reads_what_we_write(self) -> None:
        with np.load(io.BytesIO(npz.pack(SMALL)), allow_pickle=False) as loaded:
            assert set(loaded) == set(SMALL)
            for name, array in SMALL.items():
                np.testing.assert_array_equal(loaded[name], array)

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_we_read_what_numpy_writes(self, save: object) -> None:
        buffer = io.BytesIO()
        save(buffer, **SMALL, fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)))  # type: ignore[operator]
        back = npz.unpack(buffer.getvalue())
        np.testing.assert_array_equal(back["fortran"], np.arange(6.0).reshape(2, 3))
        np.testing.assert_array_equal(back["x"], SMALL["x"])


class TestHostileBytes:
    def test_objects_are_neither_written_nor_read(self) -> None:
        objects = np.array([{"a": 1}], dtype=object)
        with pytest.raises(ValueError, match="Object arrays"):
            npz.pack({"x": objects})
        data = archive({"x.npy": npy_bytes(objects, allow_pickle=True)})
        with pytest.raises(ShardCorruptError, match="pickled"):
            npz.unpack(data)

    def test_objects_within_a_structure_are_not_read(self) -> None:
        data = archive(
            {"x.npy": npy_with_header("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}")}
        )
        with pytest.raises(ShardCorruptError):
            npz.unpack(data)

    def test_a_small_file_cut_at_every_byte(self) -> None:
        data = npz.pack(SMALL)
        for length in range(len(data)):
            with pytest.raises(ShardCorruptError):
                npz.unpack(data[:length])

    @given(st.data())
    def test_flipped_bytes_give_no_other_contents(self, data: st.DataObject) -> None:
        good = npz.pack(SMALL)
        bad = bytearray(good)
        for _ in range(data.draw(st.integers(1, 4))):
            position = data.draw(st.integers(0, len(good) - 1))
            bad[position] = data.draw(st.integers(0, 255))
        try:
            arrays = npz.unpack(bytes(bad))
        except ShardCorruptError:
            return
        # Checksums cover contents, not the directory: a name may be another, and a member may be gone,
        # which every kind of shard notices.
        left = [array.tobytes() for array in SMALL.values()]
        for array in arrays.values():
            left.remove(array.tobytes())

    @given(st.binary(max_size=400))
    def test_noise(self, noise: bytes) -> None:
        with pytest.raises(ShardCorruptError):
            npz.unpack(noise)

    @given(st.binary(max_size=200))
    def test_noise_as_a_member(self, noise: bytes) -> None:
        for content in (noise, b"\x93NUMPY" + noise, b"\x93NUMPY\x01\x00" + noise):
            with pytest.raises(ShardCorruptError):
                npz.unpack(archive({"x.npy": content}))

    @pytest.mark.parametrize(
        "header",
        [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (100000, 100000, 100000, 100000)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999999)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (5,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': 4}",
            "{'descr': '<f4', 'fortran_order': 7, 'shape': (4,)}",
            "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,)}",
            "{'descr': '|V0', 'fortran_order': False, 'shape': (4,)}",
            "{'descr': ('<f4', (100000, 100000)), 'fortran_order': False, 'shape': (4,)}",
            "{'descr': 'no dtype', 'fortran_order': False, 'shape': (4,)}",
            "{'descr': '|O', 'fortran_order': False, 'shape': (4,)}",
            "{'descr': '<f4', 'shape': (4,)}",
            "__import__('os').abort()",
            "(" * 9000,
            "-" * 9000 + "1",
            "[" * 5000 + "]" * 5000,
            "",
        ],
        ids=lambda header: header[:60],
    )
    @pytest.mark.parametrize("version", [(1, 0), (2, 0)])
    def test_lying_headers(self, header: str, version: tuple[int, int]) -> None:
        with pytest.raises(ShardCorruptError):
            npz.unpack(archive({"x.npy": npy_with_header(header, bytes(16), version)}))

    @pytest.mark.parametrize("version", [(3, 0), (0, 0), (1, 1), (255, 255)])
    def test_npy_versions(self, version: tuple[int, int]) -> None:
        header = "{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}"
        with pytest.raises(ShardCorruptError, match="version"):
            npz.unpack(archive({"x.npy": npy_with_header(header, bytes(16), version)}))

    @pytest.mark.parametrize(
        "name", ["x", "x.npz", "../x.npy", "/x.npy", "a/b.npy", "1x.npy", ".npy", "x.NPY"]
    )
    def test_member_names(self, name: str) -> None:
        with pytest.raises(ShardCorruptError, match="unexpected member"):
            npz.unpack(archive({name: npy_bytes(np.zeros(1))}))

    def test_doubled_and_too_many_members(self) -> None:
        content = npy_bytes(np.zeros(1))
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("x.npy", content)
            file.writestr("x.npy", content)
        with pytest.raises(ShardCorruptError, match="unexpected member"):
            npz.unpack(buffer.getvalue())
        with pytest.raises(ShardCorruptError, match="65 members"):
            npz.unpack(archive({f"x{number}.npy": content for number in range(65)}))


class TestBombs:
    def test_refused_before_anything_is_unpacked(self) -> None:
        bomb = archive({"x.npy": npy_bytes(np.zeros(8 * 1024**2, dtype=np.uint8))})
        assert len(bomb) < 100_000
        tracemalloc.start()
        with pytest.raises(ShardCorruptError, match="at most 1000000 are allowed"):
            npz.unpack(bomb, max_bytes=1_000_000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 500_000

    def test_members_count_together(self) -> None:
        members = {f"x{number}.npy": npy_bytes(np.zeros(400, dtype=np.uint8)) for number in range(5)}
        with pytest.raises(ShardCorruptError, match="at most 2000 are allowed"):
            npz.unpack(archive(members), max_bytes=2000)
        assert len(npz.unpack(archive(members), max_bytes=20_000)) == 5

    @pytest.mark.parametrize(
        "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    )
    def test_a_bomb_that_lies_about_its_size(self, compression: int) -> None:
        claimed, real = 100_000, 16 * 1024**2
        data = bytearray(archive({"x.npy": npy_bytes(np.zeros(real, dtype=np.uint8))}, compression))
        # The directory at the end is what a reader goes by.
        struct.pack_into("<I", data, data.rindex(b"PK\x01\x02") + 24, claimed)
        tracemalloc.start()
        with pytest.raises(ShardCorruptError):
            npz.unpack(bytes(data), max_bytes=1_000_000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < len(data) + 1_000_000

    def test_a_header_that_promises_much_reserves_nothing(self) -> None:
        header = "{'descr': '<f4', 'fortran_order': False, 'shape': (100000000,)}"
        tracemalloc.start()
        with pytest.raises(ShardCorruptError, match="promises 400000000 bytes"):
            npz.unpack(archive({"x.npy": npy_with_header(header, bytes(16))}))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1_000_000
