"""The reader against directories as this project writes them, as others write them, and as they break."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import SampleError
from shared.layout.npz import Array
from shared.layout.reader import read_manifest, read_samples


def arrays_of(image: int, step: int) -> dict[str, Array]:
    """A sample whose content says which one it is."""
    return {
        "x": np.full((1, 2, 2, 4), image + step / 100, np.float16),
        "timestep": np.array([1000.0 - step], np.float32),
        "sigma": np.array(1 - step / 10, np.float32),
        "conditioning": np.full((2, 3, 4), image, np.float16),
        "pooled_conditioning": np.full((2, 5), image, np.float16),
        "step_index": np.array(step, np.int32),
    }


def write(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def write_directory(
    root: Path, name: str, images: int = 2, num_steps: int = 12, with_list: bool = True, **changes: Any
) -> list[str]:
    """Samples named by the format `name` of image, step and n, and a manifest."""
    names = []
    for n in range(images * num_steps):
        image, step = divmod(n, num_steps)
        names.append(name.format(image=image, step=step, n=n))
        write(root / names[-1], arrays_of(image, step))
    manifest = {"n_completed": images, "num_steps": num_steps} | changes
    (root / "manifest.json").write_text(json.dumps(manifest | ({"sample_files": names} if with_list else {})))
    return names


def places(root: Path, **options: Any) -> list[tuple[int, int]]:
    return [(sample.image_index, sample.step_index) for sample in read_samples(root, **options)]


ALL = [(image, step) for image in range(2) for step in range(12)]


def test_own_layout_is_read_as_it_was_written(tmp_path: Path) -> None:
    names = write_directory(tmp_path, "samples/image-{image:05d}-step-{step:03d}.npz")
    samples = list(read_samples(tmp_path))
    assert [(s.image_index, s.step_index) for s in samples] == ALL
    assert [s.path for s in samples] == [tmp_path / name for name in names]
    for sample in samples:
        for key, array in arrays_of(sample.image_index, sample.step_index).items():
            np.testing.assert_array_equal(getattr(sample, key), array)
    assert samples[0].x.dtype == np.float16


@pytest.mark.parametrize("with_list", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "samples/img{image}_step{step}.npz",
        "samples/sample_{n}.npz",
        "samples/Image {image} Step {step}.npz",
        "samples/step_{step}_img_{image}.npz",
        "samples/sd3_{n}.npz",
        "{image}_step_{step}.npz",
        "{n}.npz",
    ],
)
def test_other_names_are_put_in_order(tmp_path: Path, name: str, with_list: bool) -> None:
    write_directory(tmp_path, name, with_list=with_list)
    assert places(tmp_path) == ALL
    assert [float(s.x.flat[0]) for s in read_samples(tmp_path)] == [
        np.float16(image + step / 100) for image, step in ALL
    ]


def test_shuffled_list_is_sorted_by_the_numbers_in_the_names(tmp_path: Path) -> None:
    names = write_directory(tmp_path, "samples/image-{image}-step-{step}.npz")
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    (tmp_path / "manifest.json").write_text(
        json.dumps({"n_completed": 2, "num_steps": 12, "sample_files": shuffled})
    )
    assert places(tmp_path) == ALL


def test_a_folder_an_image(tmp_path: Path) -> None:
    write_directory(tmp_path, "samples/{image}/{step}.npz")
    assert places(tmp_path) == ALL


def test_names_without_numbers_keep_the_manifests_order(tmp_path: Path) -> None:
    names = ["zebra.npz", "ant.npz", "mouse.npz", "bee.npz"]
    for name, (image, step) in zip(names, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        write(tmp_path / name, arrays_of(image, step))
    manifest = {"n_completed": 2, "num_steps": 2, "sample_files": names}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert places(tmp_path) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_step_index_that_counts_on_is_cut_by_num_steps(tmp_path: Path) -> None:
    for n in range(6):
        write(tmp_path / f"{n}.npz", arrays_of(0, 0) | {"step_index": np.array(n)})
    (tmp_path / "manifest.json").write_text('{"n_completed": 2, "num_steps": 3}')
    assert places(tmp_path) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("name", ["samples/image-{image}-step-{step}.npz", "samples/{n}.npz"])
def test_subsets(tmp_path: Path, name: str) -> None:
    write_directory(tmp_path, name, images=3)
    assert places(tmp_path, max_images=2) == ALL
    assert places(tmp_path, max_images=1, step_stride=5) == [(0, 0), (0, 5), (0, 10)]
    assert places(tmp_path, step_stride=11) == [(i, s) for i in range(3) for s in (0, 11)]
    assert places(tmp_path, max_images=0) == []


def test_image_numbers_need_not_start_at_zero(tmp_path: Path) -> None:
    for image in (7, 12):
        write(tmp_path / f"samples/image-{image}-step-0.npz", arrays_of(image, 0))
    assert places(tmp_path, max_images=1) == [(7, 0)]
    assert places(tmp_path) == [(7, 0), (12, 0)]


@pytest.mark.parametrize("first", ["latent", "arr_0"])
def test_alternate_keys(tmp_path: Path, first: str) -> None:
    keys = [first, "arr_1", "arr_2", "arr_3", "arr_4", "arr_5"]
    arrays = arrays_of(3, 4)
    write(tmp_path / "a.npz", dict(zip(keys, arrays.values(), strict=True)))
    (sample,) = read_samples(tmp_path)
    for key, array in arrays.items():
        np.testing.assert_array_equal(getattr(sample, key), array)


def test_samples_folder_goes_before_the_root(tmp_path: Path) -> None:
    write(tmp_path / "samples/0.npz", arrays_of(1, 0))
    write(tmp_path / "0.npz", arrays_of(2, 0))
    assert [sample.conditioning.flat[0] for sample in read_samples(tmp_path)] == [1]


def test_samples_are_read_when_their_turn_comes(tmp_path: Path) -> None:
    write_directory(tmp_path, "samples/image-{image}-step-{step}.npz")
    broken = tmp_path / "samples/image-1-step-3.npz"
    broken.write_bytes(b"not a zip file")
    samples = read_samples(tmp_path)
    assert len([next(samples) for _ in range(15)]) == 15
    with pytest.raises(SampleError, match=r"image-1-step-3\.npz: not an NPZ"):
        next(samples)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"x": np.full((1, 2, 2, 4), np.nan)}, "'x' holds NaN or infinity"),
        ({"sigma": np.array(np.inf)}, "'sigma' holds NaN"),
        ({"x": np.zeros((4,))}, r"'x' has shape \(4,\); 3 to 4 axes"),
        ({"timestep": np.zeros((1, 1))}, "'timestep' has shape"),
        ({"x": np.zeros((1, 2, 2, 4), np.int32)}, "'x' is of dtype int32"),
        ({"conditioning": np.array(["text"])}, "'conditioning' is of dtype"),
        ({"step_index": np.array([1, 2])}, "'step_index' is int64"),
        ({"step_index": np.array(0.5)}, "'step_index' is float64"),
        ({"step_index": np.array(-1)}, "'step_index' is -1"),
        ({"x": np.array([{"a": 1}], dtype=object)}, "key 'x' can't be read: .*allow_pickle"),
        ({"sigma": None}, "key 'sigma' is missing; it holds: x, timestep"),
        ({"x": None}, "key 'x' is missing"),
    ],
)
def test_a_bad_sample_is_named_with_what_is_wrong(
    tmp_path: Path, changes: dict[str, Array | None], what: str
) -> None:
    arrays = arrays_of(0, 0) | changes
    write(tmp_path / "bad.npz", {key: array for key, array in arrays.items() if array is not None})
    with pytest.raises(SampleError, match=f"bad.npz: {what}"):
        list(read_samples(tmp_path))


def test_bytes_that_are_no_npz(tmp_path: Path) -> None:
    write(tmp_path / "good.npz", arrays_of(0, 0))
    good = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "good.npz").unlink()
    bad = tmp_path / "bad.npz"
    damaged = bytearray(good)
    damaged[60:90] = bytes(30)
    for content in (b"", b"\x80\x04K\x01.", good[:-40], bytes(damaged)):
        bad.write_bytes(content)
        with pytest.raises(SampleError, match=r"bad\.npz: "):
            list(read_samples(tmp_path))
    with bad.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(SampleError, match=r"bad\.npz: not an NPZ: a single array"):
        list(read_samples(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["/etc/a.npz", "../a.npz", "samples/../../a.npz", "..\\a.npz", "C:\\a.npz", "\\\\host\\a", "", "."],
)
def test_paths_outside_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    manifest = {"n_completed": 1, "num_steps": 1, "sample_files": [name]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SampleError, match="does not lie in"):
        read_samples(tmp_path)


def test_listed_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"n_completed": 1, "num_steps": 1, "sample_files": ["a.npz"]}')
    with pytest.raises(SampleError, match=r"a\.npz: no such file"):
        list(read_samples(tmp_path))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "not a readable manifest"),
        ("\udcff", "not a readable manifest"),
        ("[]", "a JSON object belongs there, not list"),
        ('{"num_steps": 1}', "'n_completed' is None"),
        ('{"n_completed": 1, "num_steps": 0}', "'num_steps' is 0"),
        ('{"n_completed": true, "num_steps": 1}', "'n_completed' is True"),
        ('{"n_completed": 1, "num_steps": 1, "sample_files": "a"}', "'sample_files' is not a list"),
    ],
)
def test_a_bad_manifest_is_named_with_what_is_wrong(tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content.encode(errors="surrogateescape"))
    for read in (read_manifest, read_samples):
        with pytest.raises(SampleError, match=f"manifest.json: {what}"):
            read(tmp_path)


def test_manifest_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    names = write_directory(tmp_path, "{n}.npz", images=1, num_steps=2, run_id="abc")
    manifest = read_manifest(tmp_path)
    assert (manifest.n_completed, manifest.num_steps) == (1, 2)
    assert manifest.sample_files == tuple(names)
    assert manifest.extra == {"run_id": "abc"}


def test_empty_and_wrong_directories(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"no manifest\.json, no samples"):
        read_samples(tmp_path)
    (tmp_path / "manifest.json").write_text('{"n_completed": 0, "num_steps": 4, "sample_files": []}')
    assert places(tmp_path) == []
    for options in ({"max_images": -1}, {"step_stride": 0}):
        with pytest.raises(SampleError, match=r"it (can't|must)"):
            read_samples(tmp_path, **options)


def test_numpy_is_all_it_imports() -> None:
    code = (
        "import sys; import numpy; before = set(sys.modules); import shared.layout.reader; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'numpy', 'shared'}))"
    )
    root = Path(__file__).resolve().parent.parent
    shown = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
