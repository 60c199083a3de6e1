"""Kinds that go back through a trajectory: what travels, what comes back, and tasks taken up again."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from redis import Redis

from shared.errors import MachineTooSmallError, TaskRefusedError
from shared.kinds.confirm import ConfirmSettings, ConfirmShard, ConfirmTask
from shared.kinds.kind import Task
from shared.kinds.levels import PARTS, LevelsSettings, LevelsShard, LevelsTask
from shared.kinds.registry import KINDS, decode_task, encode_task, kind_of
from shared.kinds.weights import WeightsShard, WeightsTask
from shared.plan import Choice, Variant, encode_variants, variants_digest
from shared.stores.relay_store import RelayStore
from tests.fleet import ROOT
from tests.tasks import SETTINGS
from tests.toy_families import ToyFamily
from worker.engine.memory import memory_of_weights
from worker.families.registry import FAMILIES
from worker.jobs.job_context import HandBackError, JobContext
from worker.kinds.lent import EngineSlot, Lent
from worker.kinds.registry import run_task
from worker.service.runtime import Runtime

CHOICES = (Choice(bits=3, group_size=32), Choice(bits=4, group_size=128))
VARIANTS = (
    Variant(name="original"),
    Variant(name="plan", layers={"layers.0.up": CHOICES[0], "patch_out": Choice(bits=2, group_size=32)}),
    Variant(name="uniform", layers={"layers.0.up": Choice(bits=4, group_size=32)}),
)
BLOB = encode_variants(VARIANTS)


def levels_task(index: int = 0, **changes: Any) -> LevelsTask:
    levels = LevelsSettings(run_id=SETTINGS.id, candidates=CHOICES)
    values = {"run": SETTINGS, "store_id": "relay", "levels": levels, "image_index": index, "seed": index}
    return LevelsTask(prompt="a red circle", **values | changes)


def confirm_task(index: int = 0, blob: bytes = BLOB) -> ConfirmTask:
    confirm = ConfirmSettings(run_id=SETTINGS.id, variants_sha256=variants_digest(blob))
    return ConfirmTask(
        run=SETTINGS, store_id="relay", confirm=confirm, image_index=index, seed=index, prompt="a red circle"
    )


def weights_task() -> WeightsTask:
    return WeightsTask(run=SETTINGS, store_id="relay", candidates=CHOICES)


def lent(task_folder: Path | None = None, blob: bytes = BLOB, **changes: Any) -> Lent:
    def no_samples(_: object) -> Any:
        raise AssertionError("these kinds need no sample set")

    values = {
        "family": ToyFamily(),
        "check": lambda progress: None,
        "samples": no_samples,
        "blob": {variants_digest(blob): blob}.__getitem__,
        "memory_share": 2**31,
        "engine_slot": EngineSlot(),
        "task_folder": task_folder,
    }
    return Lent(**values | changes)


@pytest.mark.parametrize("new", [levels_task, confirm_task, weights_task])
def test_tasks_travel_and_begin_as_their_kind_says(new: Callable[[], Task]) -> None:
    task = new()
    assert decode_task(encode_task(task)) == task
    assert task.id.startswith(f"{kind_of(task).prefix}-{task.namespace}-")
    prefixes = [kind.prefix for kind in KINDS.values()]
    assert len({*prefixes}) == len(prefixes)


def test_levels_of_one_image() -> None:
    borrowed = lent()
    shard = LevelsShard.from_bytes(run_task(levels_task(), borrowed))
    layers = [layer.path for layer in borrowed.family.layers]
    assert shard.levels.shape == (len(layers), PARTS)
    assert shard.products.shape == (len(layers), len(CHOICES), PARTS)
    assert len(shard.cotangent_norm) == SETTINGS.num_steps + 1
    assert shard.output_size == 8 * 8 * 8
    # No layer of the toy has 128 inputs or a multiple of it.
    assert shard.measurable.any(axis=0).tolist() == [True, False]
    assert not shard.products[~shard.measurable].any()
    alive = ~shard.dead
    assert alive.any()
    assert (shard.levels[alive] > 0).all()
    np.testing.assert_allclose(shard.products[..., :3].sum(axis=-1), shard.products[..., 3])
    # Another image has another probe and another trajectory, on the same engine.
    other = LevelsShard.from_bytes(run_task(levels_task(1), borrowed))
    assert not np.array_equal(other.levels, shard.levels)
    again = LevelsShard.from_bytes(run_task(levels_task(), borrowed))
    assert np.array_equal(again.levels, shard.levels)


def test_confirm_gives_each_variant_the_products_of_its_own_choices() -> None:
    borrowed = lent()
    shard = ConfirmShard.from_bytes(run_task(confirm_task(), borrowed))
    layers = [layer.path for layer in borrowed.family.layers]
    assert shard.products.shape == (len(VARIANTS), len(layers))
    for row, variant in enumerate(VARIANTS):
        chosen = {layers[column] for column in np.flatnonzero(shard.products[row])}
        assert chosen == set(variant.layers)
    levels = LevelsShard.from_bytes(run_task(levels_task(), borrowed))
    up = layers.index("layers.0.up")
    assert shard.products[1, up] == pytest.approx(levels.products[up, 0, 3], rel=1e-9)
    assert shard.squared_reference == levels.squared_reference


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ({"layers.0.nowhere": CHOICES[0]}, "no layer 'layers.0.nowhere'"),
        ({"layers.0.up": Choice(bits=4, group_size=128)}, "no multiple of the group size 128"),
    ],
)
def test_variants_that_the_model_can_not_have_are_refused(layers: dict[str, Choice], reason: str) -> None:
    blob = encode_variants((Variant(name="plan", layers=layers),))
    with pytest.raises(TaskRefusedError, match=reason):
        run_task(confirm_task(blob=blob), lent(blob=blob))


def test_weights_of_all_layers() -> None:
    borrowed = lent()
    shard = WeightsShard.from_bytes(run_task(weights_task(), borrowed))
    assert shard.squared_error.shape == (len(borrowed.family.layers), len(CHOICES))
    assert shard.squared_norm.all()


def test_what_the_machine_can_not_hold_is_refused() -> None:
    family = ToyFamily()
    weights = memory_of_weights(family.transformer)
    with pytest.raises(MachineTooSmallError, match="one step of a backward trajectory needs"):
        run_task(levels_task(), lent(family=family, memory_share=weights + 1000))


class Stopped(BaseException):
    pass


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.test_levels import lent, levels_task, run_task

def check(progress):
    if progress.startswith("step 2/4 backward, 3 "):
        os.kill(os.getpid(), signal.SIGKILL)

run_task(levels_task(), lent(Path(sys.argv[1]), check=check))
"""


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_next_one_goes_on_from(tmp_path: Path) -> None:
    folder, told = tmp_path / "task", list[str]()
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    shard = LevelsShard.from_bytes(run_task(levels_task(), lent(folder, check=told.append)))
    assert told[0].startswith("step 2/4 backward")
    # Two processes may round differently.
    expected = LevelsShard.from_bytes(run_task(levels_task(), lent()))
    for name in shard._layout:
        np.testing.assert_allclose(getattr(shard, name), getattr(expected, name), rtol=1e-4, err_msg=name)


def test_a_task_that_was_stopped_draws_nothing_again_and_says_the_same(tmp_path: Path) -> None:
    task, told = levels_task(), []

    def stop(progress: str) -> None:
        told.append(progress)
        if progress.startswith("step 2/4 backward"):
            raise Stopped

    with pytest.raises(Stopped):
        run_task(task, lent(tmp_path / "task", check=stop))
    assert told[0] == "step 1/4"
    told.clear()
    shard = run_task(task, lent(tmp_path / "task", check=told.append))
    assert told[0].startswith("step 2/4 backward")
    assert shard == run_task(task, lent())
    # The shard may not have reached the store: then the next attempt only packs it again.
    told.clear()
    assert run_task(task, lent(tmp_path / "task", check=told.append)) == shard
    assert told == []


def test_a_job_handed_back_goes_on_with_the_next_worker_of_the_machine(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "sd3", "tests.toy_families")
    task, store, told = levels_task(), RelayStore(redis), []

    class Context(JobContext):
        def check(self, progress: str) -> None:
            told.append(progress)
            self.hand_back = self.hand_back_reason == "soon" and progress.startswith("step 3/4 backward")
            super().check(progress)

    def new_runtime() -> Runtime:
        return Runtime(store=store, host="air", worker="air-1", cache_dir=tmp_path, memory_limit=2**31)

    with pytest.raises(HandBackError):
        new_runtime().run(task, Context(confirm=lambda: None, hand_back_reason="soon"))
    (folder,) = (tmp_path / "tasks").iterdir()
    assert folder.name == f"{task.id}-{'0' * 12}"
    told.clear()
    assert new_runtime().run(task, Context(confirm=lambda: None))["outcome"] == "stored"
    steps = [progress for progress in told if progress.startswith("step ")]
    assert steps[0].startswith("step 3/4 backward")
    assert not folder.exists()
    shard = store.shard(store.record(task.namespace, task.id))
    # A worker that was never interrupted says the same.
    other = replace(task, seed=task.seed)
    assert shard == run_task(other, lent())


def test_what_nobody_went_on_with_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.service import task_folders

    folders = task_folders.TaskFolders(tmp_path)
    old = folders.of("lev-0123456789ab-00000", "f" * 64)
    old.mkdir(parents=True)
    (old / "found.npz").write_bytes(b"")
    task_folders.TaskFolders(tmp_path)
    assert old.exists()
    monkeypatch.setattr(task_folders, "KEPT_SECONDS", -1.0)
    task_folders.TaskFolders(tmp_path)
    assert not old.exists()
