"""Samples on disk: a file for every step, for the needed ones, or for none, and the shard for the rest."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from redis import Redis

from producer.cli import main
from producer.collect import collect_part
from producer.cost import Gate, disk_lines
from producer.enqueue import SensitivityOptions, enqueue_calibration, enqueue_sensitivity
from producer.fleet import Fleet
from producer.folder import image_samples, manifest, sample_seals
from producer.folder.calib_folder import CalibFolder
from producer.folder.intake import Intake
from producer.folder.run_file import RunFile
from producer.folder.sample_selection import select_parts
from producer.kinds.calibration import CalibrationPart
from producer.sample_files import remove_samples, write_samples
from shared.choices import SampleFiles
from shared.errors import InputError, SampleError
from shared.layout.reader import read_manifest, read_samples
from shared.layout.sample_file import Sample
from tests.fleet import Fleet as Workers
from tests.test_collect import RUN, STEPS, TASKS, Run, _KilledError, all_steps, overwrite, shard_of, truncate
from tests.test_cost import settings

CHOICES: tuple[SampleFiles, ...] = ("all", "needed", "none")


@pytest.fixture(autouse=True)
def two_needed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 0 and 2 of the four are measured on by default."""
    monkeypatch.setattr("producer.folder.sample_steps.DEFAULT_STEPS_PER_IMAGE", 2)


class ChosenRun(Run):
    """With the choice that run.json holds."""

    def collect(self) -> Intake:
        return collect_part(CalibrationPart(self.folder, self.folder.require_run()), self.store)[1]

    def opened_again(self) -> "ChosenRun":
        """As another command finds it."""
        other = ChosenRun.__new__(ChosenRun)
        other.__dict__ = self.__dict__ | {"folder": CalibFolder(self.folder.root)}
        return other


@pytest.fixture
def make(tmp_path: Path, redis: Redis) -> Callable[[SampleFiles], ChosenRun]:
    """Three collected images, with a choice of sample files."""

    def make_one(choice: SampleFiles) -> ChosenRun:
        run = ChosenRun(tmp_path / choice, redis)
        run.folder.write_run(msgspec.structs.replace(RUN, samples=choice))
        for task in TASKS:
            run.leave(task)
        assert run.collect().problems == []
        return run

    return make_one


def sample_names(run: Run) -> list[str]:
    return sorted(path.name for path in run.folder.samples_dir.glob("*"))


def shard_names(run: Run) -> list[str]:
    return sorted(path.stem for path in run.folder.shards_dir.glob("*"))


def command(run: Run, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, [*arguments, "--calib-dir", str(run.folder.root)])
    assert result.exit_code == code, result.output
    return result.output


def arrays(sample: Sample) -> dict[str, Any]:
    return {"x": sample.x, "timestep": sample.timestep, "sigma": sample.sigma, **sample.named_conditioning}


@pytest.mark.parametrize("options", [(3, 1), (2, 2), (3, 3), (99, 7)])
def test_all_three_give_the_same_sample_set(make: Callable[[SampleFiles], ChosenRun], options: Any) -> None:
    digests = set()
    for choice in CHOICES:
        folder = make(choice).folder
        digests.add(folder.sample_sets.write(select_parts(folder, *options)).digest)
    assert len(digests) == 1


def test_what_is_written_and_what_the_manifest_says(make: Callable[[SampleFiles], ChosenRun]) -> None:
    names = [f"samples/image-{image:05d}-step-{step:03d}.npz" for image, step in all_steps(0, 1, 2)]
    listed = {"all": names, "needed": names[::2], "none": []}
    whole = read_manifest(make("all").folder.root)
    assert "note" not in whole.extra
    for choice in CHOICES:
        run = make(choice)
        written = read_manifest(run.folder.root)
        assert (written.n_completed, written.num_steps) == (3, STEPS)
        assert list(written.sample_files or ()) == listed[choice]
        assert sample_names(run) == [name.removeprefix("samples/") for name in listed[choice]]
        assert shard_names(run) == ([] if choice == "all" else [task.id for task in TASKS])
        assert written.extra["sigmas"] == whole.extra["sigmas"]
        if choice != "all":
            assert "`producer samples`" in written.extra["note"]
        assert run.folder.images.look(TASKS)[1] == {}


@pytest.mark.parametrize("choice", CHOICES[1:])
def test_a_reader_finds_every_step(make: Callable[[SampleFiles], ChosenRun], choice: SampleFiles) -> None:
    written = list(read_samples(make("all").folder.root))
    found = list(read_samples(make(choice).folder.root))
    for one, other in zip(written, found, strict=True):
        assert (one.image_index, one.step_index) == (other.image_index, other.step_index)
        expected = arrays(one)
        assert expected.keys() == arrays(other).keys()
        for name, array in arrays(other).items():
            assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
            np.testing.assert_array_equal(array, expected[name])
        # A notebook may change what it was given.
        other.x[:] = 0
        other.conditioning[:] = 0
    root = make(choice).folder.root
    assert [s.step_index for s in read_samples(root, max_images=2, step_stride=3)] == [0, 3] * 2


def test_a_folder_that_was_copied_without_its_shards(make: Callable[[SampleFiles], ChosenRun]) -> None:
    needed, none = make("needed"), make("none")
    for run in (needed, none):
        shutil.rmtree(run.folder.shards_dir)
    assert needed.collected() == [(image, step) for image in range(3) for step in (0, 2)]
    with pytest.raises(SampleError, match=r"shards/cal-.*-00000\.npz: no such file"):
        none.collected()


def test_a_damaged_shard_is_named_to_a_reader(make: Callable[[SampleFiles], ChosenRun]) -> None:
    run = make("none")
    path = run.folder.shard_path(TASKS[1].id)
    path.write_bytes(b"PK")
    with pytest.raises(SampleError, match=f"{path}: not an NPZ"):
        run.collected()


class TestCommand:
    @pytest.mark.parametrize("choice", CHOICES[1:])
    def test_it_writes_what_all_would_have_written(
        self, make: Callable[[SampleFiles], ChosenRun], choice: SampleFiles
    ) -> None:
        whole, run = make("all"), make(choice)
        count = 12 - len(sample_names(run))
        assert f"{count} samples of 3 images written: " in command(run, "samples")
        assert sample_names(run) == sample_names(whole)
        for name in sample_names(whole):
            written, expected = (each.folder.samples_dir / name for each in (run, whole))
            assert written.read_bytes() == expected.read_bytes()
        listed = read_manifest(run.folder.root)
        assert listed.sample_files == read_manifest(whole.folder.root).sample_files
        assert "note" not in listed.extra
        assert command(run, "samples") == "every sample that was asked for is there already\n"
        assert CalibFolder(run.folder.root).images.look(TASKS)[1] == {}
        assert run.collect().problems == []

    def test_it_writes_some(self, make: Callable[[SampleFiles], ChosenRun]) -> None:
        run = make("none")
        assert "4 samples of 2 images" in command(run, "samples", "--max-images", "2", "--step-stride", "3")
        assert len(read_manifest(run.folder.root).sample_files or ()) == 4
        assert len(sample_names(run)) == 4
        assert run.collected() == all_steps(0, 1, 2)
        assert "8 samples of 3 images" in command(run, "samples")

    def test_it_removes_what_the_shards_hold(self, make: Callable[[SampleFiles], ChosenRun]) -> None:
        run = make("needed")
        said = command(run, "samples", "--remove")
        assert "6 samples of 3 images removed: " in said
        assert sample_names(run) == []
        assert read_manifest(run.folder.root).sample_files == ()
        assert run.collected() == all_steps(0, 1, 2)
        assert command(run, "samples", "--remove") == "nothing to remove\n"
        assert run.collect().problems == []

    def test_nothing_is_removed_that_no_shard_holds(self, make: Callable[[SampleFiles], ChosenRun]) -> None:
        run = make("all")
        assert "keeps no shard" in command(run, "samples", "--remove", code=2)
        assert len(sample_names(run)) == 12
        said = command(run, "samples")
        assert said == "all samples and no shard (`--samples all`): 3 images\n"

    def test_a_shard_that_is_damaged(self, make: Callable[[SampleFiles], ChosenRun]) -> None:
        run = make("needed")
        truncate(run.folder.shard_path(TASKS[1].id))
        for arguments in (["--remove"], []):
            assert f"image 1: {run.folder.shard_path(TASKS[1].id)} has" in command(
                run, "samples", *arguments, code=3
            )
            assert [name for name in sample_names(run) if "image-00001" in name] == [
                "image-00001-step-000.npz",
                "image-00001-step-002.npz",
            ]

    def test_a_shard_that_is_damaged_where_all_samples_are_whole(
        self, make: Callable[[SampleFiles], ChosenRun]
    ) -> None:
        run = make("none")
        command(run, "samples")
        overwrite(run.folder.shard_path(TASKS[1].id))
        run.folder.shard_path(TASKS[2].id).unlink()
        said = command(run, "samples", "--remove")
        assert "image 1: " in said
        assert "; its samples are whole, and kept without it" in said
        assert "4 samples of 1 image removed" in said
        assert run.collected() == all_steps(0, 1, 2)
        assert shard_names(run) == [TASKS[0].id]

    def test_nothing_is_removed_for_a_shard_that_only_its_sha256_tells_from_the_collected_one(
        self, make: Callable[[SampleFiles], ChosenRun]
    ) -> None:
        run = make("needed")
        path = run.folder.shard_path(TASKS[0].id)
        before = path.stat()
        data = bytearray(path.read_bytes())
        # The hour at which an array was packed.
        data[11] ^= 8
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        said = command(run.opened_again(), "samples", "--remove", code=3)
        assert "differs from its record's sha256" in said
        assert "4 samples of 2 images removed" in said
        assert [name[:11] for name in sample_names(run)] == ["image-00000"] * 2
        (problem,) = run.opened_again().collect().problems
        assert problem.startswith(f"image 0: {path} was altered")

    def test_nothing_is_collected_yet(self, tmp_path: Path, redis: Redis) -> None:
        run = Run(tmp_path / "calib", redis)
        assert "holds no images yet" in command(run, "samples", code=2)
        assert "leave out --max-images" in command(run, "samples", "--remove", "--max-images", "1", code=2)


class TestDamage:
    @pytest.mark.parametrize("damage", [truncate, overwrite, Path.unlink])
    def test_a_sample_is_written_anew_from_its_shard(
        self, make: Callable[[SampleFiles], ChosenRun], damage: Callable[[Path], None]
    ) -> None:
        run = make("needed")
        path = run.folder.sample_paths(TASKS[1])[2]
        before = path.read_bytes()
        damage(path)
        told: list[str] = []
        folder = CalibFolder(run.folder.root, told.append)
        assert f"image 1: {path} " in folder.images.look(TASKS)[1][TASKS[1].id]
        records, damages = folder.images.look(TASKS, renew=True)
        assert (len(records), damages) == (3, {})
        assert path.read_bytes() == before
        assert told[0].startswith(f"image 1: {path} ")
        assert told[0].endswith("; its samples were written anew from its shard")
        assert CalibFolder(run.folder.root).images.look(TASKS)[1] == {}

    def test_a_request_mends_it_and_a_dry_run_only_names_it(
        self, make: Callable[[SampleFiles], ChosenRun]
    ) -> None:
        run = make("needed")
        path = run.folder.sample_paths(TASKS[1])[2]
        before = path.read_bytes()
        overwrite(path)
        damaged = path.read_bytes()
        options = SensitivityOptions(bits=[4], group_size=64, max_images=2, step_stride=1, layers="*")
        fleet = Fleet(connection=run.redis, store=run.store, store_url=None)
        gate = Gate(lambda line: None, dry_run=True)
        with pytest.raises(InputError, match="which mends it or has the image drawn again"):
            enqueue_sensitivity(CalibFolder(run.folder.root), options, fleet, gate)
        assert path.read_bytes() == damaged
        assert enqueue_sensitivity(CalibFolder(run.folder.root), options, fleet)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("damage", [truncate, overwrite, Path.unlink])
    @pytest.mark.parametrize("choice", CHOICES[1:])
    def test_without_its_shard_an_image_is_drawn_again(
        self, make: Callable[[SampleFiles], ChosenRun], choice: SampleFiles, damage: Callable[[Path], None]
    ) -> None:
        run = make(choice)
        before = sample_names(run)
        path = run.folder.shard_path(TASKS[1].id)
        damage(path)
        (problem,) = run.collect().problems
        assert problem.startswith(f"image 1: {path} ")
        assert problem.endswith("; the image is to be drawn again")
        assert run.collected() == all_steps(0, 2)
        run.leave(TASKS[1])
        assert run.collect().merged == [TASKS[1].id]
        assert run.collected() == all_steps(0, 1, 2)
        assert sample_names(run) == before

    def test_a_collector_that_runs_notices_a_shard_that_is_taken_away(
        self, make: Callable[[SampleFiles], ChosenRun]
    ) -> None:
        run = make("none")
        assert run.collect() == Intake()
        run.folder.shard_path(TASKS[1].id).unlink()
        assert len(run.collect().problems) == 1

    @pytest.mark.parametrize("choice", CHOICES[1:])
    def test_without_a_seal_the_record_vouches_for_the_shard(
        self, make: Callable[[SampleFiles], ChosenRun], choice: SampleFiles
    ) -> None:
        run = make(choice)
        listed = read_manifest(run.folder.root)
        run.folder.seal_path(TASKS[0].id).unlink()
        assert run.collect().problems == []
        assert run.folder.seal_path(TASKS[0].id).exists()
        assert read_manifest(run.folder.root) == listed
        run.folder.seal_path(TASKS[0].id).unlink()
        run.folder.shard_path(TASKS[0].id).write_bytes(shard_of(TASKS[1]).to_bytes())
        assert "image 0: " in CalibFolder(run.folder.root).images.look(TASKS)[1][TASKS[0].id]

    def test_doctor_names_it(self, make: Callable[[SampleFiles], ChosenRun]) -> None:
        run = make("none")
        truncate(run.folder.shard_path(TASKS[2].id))
        result = CliRunner().invoke(
            main,
            ["doctor", "--json", "--redis-url", "redis://localhost:1", "--calib-dir", str(run.folder.root)],
        )
        found = {check["name"]: check for check in json.JSONDecoder().raw_decode(result.output)[0]["checks"]}
        assert found["Samples"]["found"].startswith("1 of 3 images: image 2: ")


class TestChoice:
    def test_it_is_a_habit_of_the_folder(self, make: Callable[[SampleFiles], ChosenRun]) -> None:
        run = make("all")
        fleet = Fleet(connection=run.redis, store=run.store, store_url=None)

        def ask(choice: SampleFiles | None) -> RunFile:
            return enqueue_calibration(
                run.folder, RUN.settings, [*RUN.prompts, "d"], 4, fleet, samples=choice
            )[0]

        assert "samples" not in json.loads(run.folder.run_path.read_bytes())
        first = ask("none")
        assert (first.settings.id, first.samples) == (RUN.settings.id, "none")
        assert ask(None).samples == "none"
        assert CalibFolder(run.folder.root).require_run().samples == "none"
        new = msgspec.structs.replace(TASKS[0], image_index=3, prompt="d", seed=3)
        run.leave(new, shard_of(new))
        assert run.collect().merged == [new.id]
        assert len(sample_names(run)) == 12
        assert shard_names(run) == [new.id]
        assert run.collected() == all_steps(0, 1, 2, 3)
        assert ask("all").samples == "all"
        assert "samples" not in json.loads(run.folder.run_path.read_bytes())

    @pytest.mark.parametrize("choice", CHOICES)
    def test_of_an_image_that_is_drawn_again_nothing_older_stays(
        self, make: Callable[[SampleFiles], ChosenRun], choice: SampleFiles
    ) -> None:
        run = make("none")
        command(run, "samples")
        for path in (run.folder.shard_path(TASKS[1].id), run.folder.sample_paths(TASKS[1])[3]):
            truncate(path)
        run.folder.write_run(msgspec.structs.replace(RUN, samples=choice))
        run.leave(TASKS[1], shard_of(msgspec.structs.replace(TASKS[1], image_index=9)))
        run = run.opened_again()
        assert len(run.collect().problems) == 1
        of_image = [name for name in sample_names(run) if "image-00001" in name]
        assert len(of_image) == {"all": 4, "needed": 2, "none": 0}[choice]
        assert (TASKS[1].id in shard_names(run)) == (choice != "all")
        samples = [sample for sample in read_samples(run.folder.root) if sample.image_index == 1]
        np.testing.assert_array_equal(
            samples[3].x[0], shard_of(msgspec.structs.replace(TASKS[1], image_index=9)).x[3]
        )


@pytest.mark.slow
@pytest.mark.parametrize("remove", [False, True])
def test_killed_at_every_change_the_same_command_goes_on(
    make: Callable[[SampleFiles], ChosenRun], monkeypatch: pytest.MonkeyPatch, remove: bool
) -> None:
    """After every kill, what the manifest lists is there, and every sample can be read."""
    changes, limit = 0, 0
    write, unlink = sample_seals.write_atomically, Path.unlink

    def count() -> None:
        nonlocal changes
        if changes == limit:
            raise _KilledError
        changes += 1

    def write_some(path: Path, data: bytes) -> None:
        count()
        write(path, data)

    def unlink_some(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".npz":
            count()
        unlink(path, missing_ok)

    run = make("none")
    root = run.folder.root
    for limit in range(40):  # noqa: B007
        folder = CalibFolder(root)
        write_samples(folder, None, 1 if remove else 99, lambda done, total: None)
        if not remove:
            remove_samples(folder, lambda done, total: None)
        with monkeypatch.context() as patch:
            for module in (image_samples, sample_seals, manifest):
                patch.setattr(module, "write_atomically", write_some)
            patch.setattr(Path, "unlink", unlink_some)
            changes, killed = 0, False
            try:
                act(CalibFolder(root), remove)
            except _KilledError:
                killed = True
        for name in read_manifest(root).sample_files or ():
            assert (root / name).is_file()
        assert run.collected() == all_steps(0, 1, 2)
        assert CalibFolder(root).images.look(TASKS)[1] == {}
        act(CalibFolder(root), remove)
        assert len(sample_names(run)) == len(read_manifest(root).sample_files or ()) == (0 if remove else 12)
        if not killed:
            break
    # Seals of three images, the manifest, and twelve samples.
    assert limit == 3 + 1 + 12


def act(folder: CalibFolder, remove: bool) -> None:
    if remove:
        remove_samples(folder, lambda done, total: None)
    else:
        write_samples(folder, None, 1, lambda done, total: None)


def test_what_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.folder.sample_steps.DEFAULT_STEPS_PER_IMAGE", 10)
    run = settings()
    first, second = disk_lines(run, 100, "all", tmp_path)
    assert first.startswith("disk: at most 3.85 GB of samples, ")
    assert second.startswith("disk: 1.58 GB with --samples needed, 811.01 MB with --samples none; ")
    (line,) = disk_lines(run, 100, "needed", tmp_path)
    assert line.startswith("disk: at most 770.05 MB of samples and 811.01 MB of shards, ")
    (line,) = disk_lines(run, 100, "none", tmp_path)
    assert line.startswith("disk: at most 811.01 MB of shards, ")
    (line,) = disk_lines(run, 10, "all", tmp_path)
    assert "--samples" not in line
    assert disk_lines(run, 0, "all", tmp_path) == []


@pytest.mark.slow
def test_from_prompts_to_results_without_a_sample_file(tmp_path: Path, redis_url: str) -> None:
    """As a user does it, with a real worker: files are written after the measurement, and change nothing."""
    fleet = Workers(tmp_path, redis_url, tmp_path / "cache")
    fleet.enqueue(2, "--samples", "none")
    fleet.work("--quiet")
    fleet.producer("collect")
    assert fleet.json("manifest.json")["sample_files"] == []
    measure = (
        "enqueue-sensitivity", "--layers", "final_layer.linear", "--bits", "4", "--step-stride", "2",
    )  # fmt: skip
    assert "on 4 samples (2 images, one step in 2)" in fleet.producer(*measure)
    fleet.work("--quiet")
    fleet.producer("collect")
    assert [(s.image_index, s.step_index) for s in read_samples(fleet.calib, step_stride=2)] == [
        (0, 0), (0, 2), (1, 0), (1, 2),
    ]  # fmt: skip
    assert "6 samples of 2 images written: " in fleet.producer("samples")
    shutil.rmtree(fleet.calib / "shards")
    # Without shards the images stand on their samples, and give the very same sample set.
    assert "0 tasks enqueued, 1 collected" in fleet.producer(*measure)
    said = fleet.producer("collect")
    assert "calibration: 2 of 2" in said
    assert all("shard" not in image for image in fleet.json("manifest.json")["images"])
    assert "2 images are as they were collected" in fleet.producer("doctor", code=0)
