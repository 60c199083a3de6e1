"""Collecting images: whole or not at all, whatever the shards hold and wherever it is killed."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from redis import Redis

from producer.collect import collect_part
from producer.enqueue import SensitivityOptions, enqueue_calibration, enqueue_sensitivity
from producer.fleet import Fleet
from producer.folder import calib_folder, image_samples, json_file, manifest, record_folder, sample_seals
from producer.folder.calib_folder import CalibFolder
from producer.folder.intake import Intake
from producer.folder.run_file import RunFile
from producer.folder.sample_selection import select_samples
from producer.folder.sample_steps import default_step_stride
from producer.folder.tasks import calibration_tasks
from producer.kinds import calibration
from producer.kinds.calibration import CalibrationPart
from shared.errors import InputError
from shared.kinds.calibration import CalibrationShard, CalibrationTask
from shared.layout import npz
from shared.layout.reader import read_manifest, read_samples
from shared.layout.sample_set import SampleSet
from shared.model_card import LayerInfo, ModelCard, encode_model_card
from shared.stores.relay_store import RelayStore
from tests.tasks import SETTINGS, record_of

STEPS = SETTINGS.num_steps
RUN = RunFile(settings=SETTINGS, prompts=("a", "b", "c"), store_id="relay", store=None)
TASKS = calibration_tasks(RUN)
PNG = b"\x89PNG\r\n\x1a\n"


def card(fingerprint: str = "f" * 64, text_encoder: str = "e" * 64) -> bytes:
    layers = (LayerInfo(path="final_layer.linear", shape=(64, 64)),)
    parts = {"transformer": fingerprint, "text_encoder": text_encoder}
    return encode_model_card(
        ModelCard(model="tiny-sd3", fingerprint=fingerprint, parts=parts, parameters=4096, layers=layers)
    )


def as_bytes(data: bytes) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, dtype=np.uint8)


def shard_of(task: CalibrationTask, **changes: Any) -> CalibrationShard:
    rng = np.random.default_rng(task.image_index)
    values = {
        "x": rng.normal(size=(STEPS + 1, 8, 8, 16)).astype(np.float32),
        "sigma": np.linspace(1, 0, STEPS + 1, dtype=np.float32),
        "timestep": np.linspace(1000, 250, STEPS, dtype=np.float32),
        "conditioning": {
            "conditioning": rng.normal(size=(2, 5, 32)).astype(np.float32),
            "pooled_conditioning": rng.normal(size=(2, 16)).astype(np.float32),
        },
        "preview_png": as_bytes(PNG),
        "model_json": as_bytes(card()),
    }
    return CalibrationShard(**values | changes)


class Run:
    """A calibration folder and a relay, and a worker that leaves shards in it."""

    def __init__(self, root: Path, redis: Redis) -> None:
        self.folder = CalibFolder(root)
        self.store = RelayStore(redis)
        self.redis = redis
        self.folder.write_run(RUN)

    def leave(self, task: CalibrationTask, shard: CalibrationShard | None = None, **changes: Any) -> None:
        data = (shard or shard_of(task)).to_bytes()
        assert self.store.put(record_of(task, data, **changes), data) == "stored"

    def collect(self) -> Intake:
        return collect_part(CalibrationPart(self.folder, RUN), self.store)[1]

    def collected(self) -> list[tuple[int, int]]:
        """As a reader finds them."""
        return [(sample.image_index, sample.step_index) for sample in read_samples(self.folder.root)]

    def waiting(self) -> set[str]:
        return self.store.record_ids(SETTINGS.id)


@pytest.fixture
def run(tmp_path: Path, redis: Redis) -> Run:
    return Run(tmp_path / "calib", redis)


def all_steps(*images: int) -> list[tuple[int, int]]:
    return [(image, step) for image in images for step in range(STEPS)]


def test_samples_are_those_of_the_shard(run: Run) -> None:
    for task in TASKS:
        run.leave(task)
    intake = run.collect()
    assert intake.merged == [task.id for task in TASKS]
    assert intake.problems == []
    assert run.waiting() == set()
    assert run.collected() == all_steps(0, 1, 2)
    for sample in read_samples(run.folder.root):
        shard = shard_of(TASKS[sample.image_index])
        np.testing.assert_array_equal(sample.x[0], shard.x[sample.step_index])
        np.testing.assert_array_equal(sample.conditioning, shard.conditioning["conditioning"])
        np.testing.assert_array_equal(sample.pooled_conditioning, shard.conditioning["pooled_conditioning"])
        assert sample.sigma == shard.sigma[sample.step_index]
        assert sample.timestep == shard.timestep[sample.step_index]
    written = read_manifest(run.folder.root)
    assert (written.n_completed, written.num_steps) == (3, STEPS)
    assert written.extra["sigmas"] == shard_of(TASKS[0]).sigma.tolist()
    assert run.folder.preview_path(1).read_bytes() == PNG


def test_again_changes_nothing(run: Run) -> None:
    run.leave(TASKS[0])
    run.collect()
    before = {path: path.stat().st_mtime_ns for path in run.folder.root.rglob("*") if path.is_file()}
    assert run.collect() == Intake()
    # A second worker's shard of the same image, later: the first one counts.
    run.leave(TASKS[0], shard_of(TASKS[1]))
    assert run.collect() == Intake()
    assert run.waiting() == set()
    after = {path: path.stat().st_mtime_ns for path in run.folder.root.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x": np.zeros((STEPS, 8, 8, 16), dtype=np.float32)}, "do not fit"),
        ({"x": np.zeros((STEPS + 1, 4, 8, 16), dtype=np.float32)}, "8x8"),
        ({"x": np.full((STEPS + 1, 8, 8, 16), np.nan, dtype=np.float32)}, "NaN"),
        (
            {
                "conditioning": {
                    "conditioning": np.full((2, 5, 32), np.inf, dtype=np.float32),
                    "pooled_conditioning": np.zeros((2, 16), dtype=np.float32),
                }
            },
            "NaN",
        ),
        ({"sigma": np.full(STEPS + 1, np.nan, dtype=np.float32)}, "NaN"),
        ({"preview_png": as_bytes(b"<svg>")}, "PNG"),
        ({"model_json": as_bytes(b"{}")}, "model card"),
        ({"model_json": as_bytes(card("0" * 64))}, "model card"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_shard_that_does_not_belong_is_named_and_dropped(run: Run, changes: Any, says: str) -> None:
    run.leave(TASKS[0])
    run.leave(TASKS[1], shard_of(TASKS[1], **changes))
    intake = run.collect()
    assert intake.merged == [TASKS[0].id]
    (problem,) = intake.problems
    assert problem.startswith("image 1: dropped, to be computed again")
    assert says in problem
    assert run.waiting() == set()
    assert run.collected() == all_steps(0)
    # What is computed again is taken.
    run.leave(TASKS[1])
    assert run.collect().merged == [TASKS[1].id]
    assert run.collected() == all_steps(0, 1)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: data[:-1] + b"x", lambda data: b""]
)
def test_a_damaged_shard_is_named_and_dropped(run: Run, damage: Callable[[bytes], bytes]) -> None:
    run.leave(TASKS[0])
    key = f"bitfleet:shard:{SETTINGS.id}:{TASKS[0].id}"
    data = run.redis.get(key)
    assert isinstance(data, bytes)
    run.redis.set(key, damage(data))
    intake = run.collect()
    assert intake.merged == []
    assert "image 0: dropped" in intake.problems[0]
    assert run.waiting() == set()
    assert not list(run.folder.root.rglob("*.npz"))


def test_another_models_image_is_refused_and_told_whose_it_is(run: Run) -> None:
    run.leave(TASKS[0])
    other = shard_of(TASKS[1], model_json=as_bytes(card("0" * 64)))
    run.leave(TASKS[1], other, fingerprint="0" * 64, host="air")
    intake = run.collect()
    assert "air has other model files (fingerprint 000000000000" in intake.problems[0]
    assert run.collected() == all_steps(0)


def test_an_image_of_another_text_encoder_is_refused(run: Run) -> None:
    run.leave(TASKS[0])
    run.leave(TASKS[1], shard_of(TASKS[1], model_json=as_bytes(card(text_encoder="0" * 64))), host="air")
    (problem,) = run.collect().problems
    assert "air has other files of the text_encoder (fingerprint 000000000000" in problem
    assert run.collected() == all_steps(0)


def test_an_image_without_a_preview_is_kept(run: Run) -> None:
    run.leave(TASKS[0], shard_of(TASKS[0], preview_png=as_bytes(b"")))
    assert run.collect().problems == []
    assert run.collected() == all_steps(0)
    assert not run.folder.preview_path(0).exists()


def test_a_record_of_another_prompt_or_seed_is_refused(run: Run) -> None:
    for field, value in (("prompt", "another"), ("seed", 77), ("store_id", "elsewhere")):
        other = msgspec.structs.replace(TASKS[0], **{field: value})
        assert other.id == TASKS[0].id
        run.leave(other)
        assert "of other settings" in run.collect().problems[0]
        assert run.waiting() == set()


def test_strangers_shards_in_the_group_are_left_alone(run: Run) -> None:
    beyond = msgspec.structs.replace(TASKS[0], image_index=99)
    run.leave(beyond)
    assert run.collect() == Intake()
    assert run.waiting() == {beyond.id}


@pytest.mark.parametrize("remaining", [1, 0])
def test_a_deleted_sample_makes_its_image_undone(run: Run, remaining: int) -> None:
    for task in TASKS[: remaining + 1]:
        run.leave(task)
    run.collect()
    lost = TASKS[remaining]
    (run.folder.root / run.folder.sample_name(lost.image_index, 2)).unlink()
    intake = run.collect()
    assert f"{lost.label}: " in intake.problems[0]
    assert "is gone; the image is to be drawn again" in intake.problems[0]
    assert lost.id not in run.folder.records.read()
    # The manifest lists what is there, even when that is nothing.
    written = read_manifest(run.folder.root)
    assert written.n_completed == remaining
    for name in written.sample_files or ():
        assert (run.folder.root / name).is_file()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def alter(path: Path) -> None:
    """Other bytes, of the same number: only their sha256 tells."""
    with np.load(path) as arrays:
        found = dict(arrays)
    size = path.stat().st_size
    found["x"] = found["x"][:, ::-1]
    path.write_bytes(npz.pack(found))
    with path.open("ab") as file:
        file.truncate(size)


def overwrite(path: Path) -> None:
    path.write_bytes(b"PK damaged")


@pytest.mark.parametrize("damage", [truncate, alter, overwrite, Path.unlink])
def test_a_sample_that_changed_is_named_and_its_image_restored(
    run: Run, damage: Callable[[Path], None]
) -> None:
    for task in TASKS:
        run.leave(task)
    run.collect()
    path = run.folder.root / run.folder.sample_name(1, 2)
    before = path.read_bytes()
    damage(path)
    assert before != (path.read_bytes() if path.exists() else b"")
    (problem,) = run.collect().problems
    assert problem.startswith(f"image 1: {path} ")
    assert problem.endswith("; the image is to be drawn again")
    assert run.collected() == all_steps(0, 2)
    run.leave(TASKS[1])
    assert run.collect().merged == [TASKS[1].id]
    assert path.read_bytes() == before
    assert run.collected() == all_steps(0, 1, 2)


def test_a_sample_that_changed_is_restored_at_once_from_a_shard_that_is_still_there(run: Run) -> None:
    run.leave(TASKS[0])
    run.collect()
    path = run.folder.root / run.folder.sample_name(0, 1)
    before = path.read_bytes()
    truncate(path)
    run.leave(TASKS[0])
    intake = run.collect()
    assert (len(intake.problems), intake.merged) == (1, [TASKS[0].id])
    assert path.read_bytes() == before


def test_a_copied_folder_is_looked_into_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying changes times, and no bytes; a folder collected by an older revision has no seals."""
    run.leave(TASKS[0])
    run.collect()
    paths = [run.folder.root / run.folder.sample_name(0, step) for step in range(STEPS)]
    for path in paths:
        os.utime(path, (1, 1))
    assert run.collect() == Intake()
    run.folder.seal_path(TASKS[0].id).unlink()
    assert run.collect() == Intake()

    def no_reading(*_: object) -> None:
        raise AssertionError("read once more")

    monkeypatch.setattr(hashlib, "file_digest", no_reading)
    assert run.collect() == Intake()


@pytest.mark.parametrize("damage", [truncate, overwrite])
def test_without_a_seal_a_file_must_be_sound(run: Run, damage: Callable[[Path], None]) -> None:
    run.leave(TASKS[0])
    run.collect()
    run.folder.seal_path(TASKS[0].id).unlink()
    path = run.folder.root / run.folder.sample_name(0, 1)
    damage(path)
    assert f"{path} is damaged" in run.collect().problems[0]


def test_sensitivity_is_not_measured_on_a_sample_that_changed(run: Run) -> None:
    for task in TASKS:
        run.leave(task)
    run.collect()
    alter(run.folder.root / run.folder.sample_name(1, 2))
    options = SensitivityOptions(bits=[4], group_size=64, max_images=2, step_stride=1, layers="*")
    fleet = Fleet(connection=run.redis, store=run.store, store_url=None)
    with pytest.raises(InputError, match=r"image 1: .* was altered .*; run `producer collect --wait`"):
        enqueue_sensitivity(run.folder, options, fleet)
    assert enqueue_sensitivity(run.folder, replace(options, max_images=1), fleet)
    # Asked for again, the image is drawn again.
    _, reconciled = enqueue_calibration(run.folder, SETTINGS, RUN.prompts, 3, fleet)
    assert reconciled.enqueued == (TASKS[1].id,)


class _KilledError(BaseException):
    """As kill -9: nothing within catches it."""


@pytest.mark.slow
def test_killed_at_every_write_the_next_pass_goes_on(
    tmp_path: Path, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every kill the folder is readable and lists whole images only; the end is always the same."""
    write = calibration.write_atomically
    writes, limit = 0, 0

    def write_some(path: Path, data: bytes) -> None:
        nonlocal writes
        if writes == limit:
            raise _KilledError
        writes += 1
        write(path, data)

    modules = (calibration, calib_folder, image_samples, json_file, record_folder, manifest, sample_seals)
    for module in modules:
        monkeypatch.setattr(module, "write_atomically", write_some)
    for limit in range(1, 60):
        writes = 0
        redis.flushall()
        try:
            run = Run(tmp_path / str(limit), redis)
            for task in TASKS[:2]:
                run.leave(task)
            run.collect()
            finished = True
        except _KilledError:
            finished = False
        whole = len(run.folder.records.read())
        if run.folder.manifest_path.exists():
            assert run.collected() == all_steps(*range(read_manifest(run.folder.root).n_completed))
        assert len(run.waiting()) >= 2 - whole, "nothing is forgotten before it is kept"
        writes = -1000
        run.collect()
        assert run.waiting() == set()
        assert run.collected() == all_steps(0, 1)
        assert not list(run.folder.root.rglob("*.tmp"))
        if finished:
            break
    # run.json, model.json and its copy, the manifest, and per image its steps, seal, preview and record.
    assert limit == 4 + 2 * (STEPS + 3)


def test_killed_before_the_store_forgot(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: Any) -> None:
        raise _KilledError

    run.leave(TASKS[0])
    with monkeypatch.context() as patch:
        patch.setattr(RelayStore, "discard", killed)
        with pytest.raises(_KilledError):
            run.collect()
    assert run.waiting() == {TASKS[0].id}
    assert run.collect().merged == []
    assert run.waiting() == set()
    assert run.collected() == all_steps(0)


class TestSelection:
    @pytest.fixture
    def collected(self, run: Run) -> Run:
        for task in TASKS:
            run.leave(task)
        run.collect()
        return run

    def test_every_sample(self, collected: Run) -> None:
        samples = select_samples(collected.folder, max_images=2, step_stride=1)
        assert list(zip(samples.image_index[samples.image], samples.step_index, strict=True)) == all_steps(
            0, 1
        )
        assert samples.has_next.tolist() == ([True] * (STEPS - 1) + [False]) * 2
        for row in range(len(samples)):
            shard, step = shard_of(TASKS[samples.image[row]]), samples.step_index[row]
            np.testing.assert_array_equal(samples.x[row], shard.x[step])
            assert samples.sigma_next[row] == shard.sigma[step + 1]
            if samples.has_next[row]:
                np.testing.assert_array_equal(samples.x_next[row], shard.x[step + 1])
            for name, array in shard.conditioning.items():
                np.testing.assert_array_equal(samples.conditioning[name][samples.image[row]], array)

    def test_a_stride(self, collected: Run) -> None:
        samples = select_samples(collected.folder, max_images=99, step_stride=3)
        assert samples.step_index.tolist() == [0, 3] * 3
        assert samples.image_index.tolist() == [0, 1, 2]
        assert samples.has_next.tolist() == [True, False] * 3

    def test_it_travels_and_equal_samples_have_equal_bytes(self, collected: Run) -> None:
        first = select_samples(collected.folder, max_images=2, step_stride=2).to_bytes()
        assert select_samples(collected.folder, max_images=2, step_stride=2).to_bytes() == first
        assert len(SampleSet.from_bytes(first)) == 4

    def test_nothing_collected_yet(self, run: Run) -> None:
        with pytest.raises(InputError, match="producer collect"):
            select_samples(run.folder, max_images=2, step_stride=1)

    @pytest.mark.parametrize(
        ("steps", "stride"), [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (50, 5), (1000, 100)]
    )
    def test_the_default_stride_leaves_about_ten(self, steps: int, stride: int) -> None:
        assert default_step_stride(steps) == stride
