"""Sample sets travel in parts of one image; folders of older revisions, with one blob for all, go on."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from redis import Redis

from producer.folder import sample_selection
from producer.folder.calib_folder import SensitivityFolder
from producer.folder.sample_selection import select_parts, select_samples
from producer.folder.tasks import sketch_tasks
from shared.errors import SampleError, ShardCorruptError
from shared.layout.sample_file import SampleFile
from shared.layout.sample_index import SampleIndex
from shared.layout.sample_parts import join, read_sample_set
from shared.layout.sample_set import SampleSet
from tests.calibration_shards import calibration_shard
from tests.folders import Folder
from tests.tasks import SETTINGS
from tests.test_collect_sensitivity import exact_shard, sketch_shard
from worker.service.sample_cache import fetch_samples

STEPS = SETTINGS.num_steps


@pytest.fixture
def folder(tmp_path: Path, redis: Redis, redis_url: str) -> Folder:
    """Three images, collected."""
    folder = Folder(tmp_path / "calib", redis, redis_url, images=3)
    folder.leave_images()
    assert folder.call("collect").exit_code == 0
    return folder


def enqueue(folder: Folder, *options: str) -> None:
    result = folder.call("enqueue-sensitivity", *options)
    assert result.exit_code == 0, result.output


def only(folder: Folder) -> SensitivityFolder:
    (place,) = folder.folder.sensitivities()
    return place


def blobs(folder: Folder) -> list[str]:
    keys: Any = folder.store._redis.keys("bitfleet:blob:*")
    return sorted(key.decode().rpartition(":")[2] for key in keys)


def test_one_part_an_image_or_more(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = select_samples(folder.folder, 3, 1)
    parts = list(select_parts(folder.folder, 3, 1))
    assert [part.image_index.tolist() for part in parts] == [[0], [1], [2]]
    monkeypatch.setattr(sample_selection, "PART_BYTES", 1)
    small = list(select_parts(folder.folder, 3, 1))
    assert [part.step_index.tolist() for part in small] == [[step] for step in range(STEPS)] * 3
    assert join(small).equals(whole)
    assert whole.image.tolist() == [image for image in range(3) for _ in range(STEPS)]
    assert len(whole.conditioning["conditioning"]) == 3


def test_no_sample_is_read_that_is_not_needed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stride, neither latents of other steps nor any conditioning but one an image."""
    read: list[tuple[str, str]] = []
    checked = SampleFile._checked

    def note(file: Any, name: str, key: Any) -> Any:
        read.append((file.path.stem, name))
        return checked(file, name, key)

    monkeypatch.setattr(SampleFile, "_checked", note)
    list(select_parts(folder.folder, 2, 3))
    # Steps 0 and 3 are measured on, 1 follows 0.
    assert {name for name, array in read if array == "x"} == {
        f"image-0000{image}-step-00{step}" for image in range(2) for step in (0, 1, 3)
    }
    assert [name for name, array in read if array == "conditioning"] == [
        "image-00000-step-000",
        "image-00001-step-000",
    ]


def test_conditioning_of_another_shape_is_refused_before_anything_is_enqueued(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(STEPS):
        path = folder.folder.root / folder.folder.sample_name(1, step)
        with np.load(path) as arrays:
            changed = dict(arrays) | {"conditioning": np.zeros((2, 9, 8), dtype=np.float32)}
        np.savez(path, **changed)
    with pytest.raises(SampleError, match="has not the shape of that in"):
        list(select_parts(folder.folder, 3, 1))


def test_blobs_are_shared_and_leave_the_relay_with_the_last_that_needs_them(folder: Folder) -> None:
    enqueue(folder, "--bits", "4", "--max-images", "2")
    first = only(folder)
    digest = first.require_request().settings.sample_set_sha256
    stored = folder.store.blob(digest)
    index = msgspec.json.decode(stored, type=SampleIndex)
    assert hashlib.sha256(stored).hexdigest() == digest
    assert blobs(folder) == sorted([digest, *index.parts])
    assert len(index.parts) == 2
    assert folder.store.used_bytes == sum(len(folder.store.blob(blob)) for blob in blobs(folder))
    # Another group size is measured on the same samples, and more images on some of them.
    enqueue(folder, "--bits", "4", "--max-images", "2", "--group-size", "32")
    assert len(blobs(folder)) == 3
    enqueue(folder, "--bits", "4", "--max-images", "3")
    assert len(blobs(folder)) == 3 + 2
    left = {place.root.name: folder.pairs_of(place) for place in folder.folder.sensitivities()}
    sizes = []
    for pairs in left.values():
        for pair in pairs:
            folder.leave(pair, exact_shard(pair, images=2).to_bytes())
        folder.call("collect")
        sizes.append(len(blobs(folder)))
    assert sizes[-1] == 0
    assert folder.store.used_bytes == 0
    assert sizes[0] >= 3


def test_a_blob_that_is_lost_is_put_there_again(folder: Folder) -> None:
    enqueue(folder, "--bits", "4")
    before = blobs(folder)
    folder.store._redis.delete(f"bitfleet:blob:{before[1]}")
    assert folder.call("collect").exit_code == 3
    assert blobs(folder) == before


def test_a_sample_set_that_is_lost_here_stops_no_other(folder: Folder) -> None:
    enqueue(folder, "--bits", "4", "--max-images", "2")
    for path in (folder.folder.root / "sample_sets").iterdir():
        path.unlink()
    folder.store._redis.flushall()
    result = folder.call("collect", "--wait")
    assert result.exit_code == 3
    assert "nothing is enqueued: " in result.output
    assert "is lost or altered; give the same `producer enqueue-sensitivity` again" in result.output
    assert "calibration: 3 of 3" in result.output
    enqueue(folder, "--bits", "4", "--max-images", "2")
    assert len(blobs(folder)) == 3


def test_what_never_fits_the_relay_is_refused_before_it_is_asked_for(folder: Folder) -> None:
    folder.store.set_limit(1000)
    result = folder.call("enqueue-sensitivity", "--bits", "4")
    assert result.exit_code == 2
    assert "give a larger --relay-limit, fewer --max-images" in result.output
    assert folder.folder.sensitivities() == []
    assert blobs(folder) == []


def test_a_full_relay_is_waited_for(folder: Folder) -> None:
    size = sum(len(part.to_bytes()) for part in select_parts(folder.folder, 3, 1))
    folder.store.set_limit(size + 1000)
    stranger = "0" * 64
    folder.store.put_blob(stranger, bytes(2000))
    result = folder.call("enqueue-sensitivity", "--bits", "4")
    assert result.exit_code == 2
    assert "the Redis relay has no room" in result.output
    # Asked for it is, and as soon as there is room, it is enqueued.
    result = folder.call("collect")
    assert result.exit_code == 3
    assert "nothing is enqueued yet: the Redis relay has no room" in result.output
    assert folder.queue.in_flight().queued == ()
    folder.store.discard_blob(stranger)
    assert folder.call("collect").exit_code == 3
    assert len(folder.queue.in_flight().queued) == 1


def test_a_sketch_that_is_replaced_leaves_queue_and_relay(folder: Folder) -> None:
    enqueue(folder, "--method", "sketch", "--bits", "4", "--probes", "2", "--max-images", "1")
    tasks = sketch_tasks(only(folder).require_request(), folder.run_file)
    assert len(tasks) == STEPS
    folder.queue.withdraw([tasks[0].id])
    folder.leave(tasks[0], sketch_shard(tasks[0]).to_bytes())
    blobs_only = folder.store.used_bytes - len(sketch_shard(tasks[0]).to_bytes())
    result = folder.call(
        "enqueue-sensitivity", "--method", "sketch", "--bits", "4", "--probes", "3", "--max-images", "1"
    )
    assert result.exit_code == 0, result.output
    assert f"is withdrawn: {STEPS} tasks, of which 1 were finished and not collected" in result.output
    new = sketch_tasks(only(folder).require_request(), folder.run_file)
    assert set(folder.queue.in_flight().queued) == {task.id for task in new}
    assert folder.store.record_ids(only(folder).root.name) == set()
    assert folder.store.used_bytes == blobs_only
    # The same one again replaces nothing.
    again = folder.call(
        "enqueue-sensitivity", "--method", "sketch", "--bits", "4", "--probes", "3", "--max-images", "1"
    )
    assert "withdrawn" not in again.output


class TestOlderRevision:
    @pytest.fixture
    def old(self, folder: Folder) -> Folder:
        """A folder as older revisions left it: the set is one NPZ, in the folder of the request."""
        enqueue(folder, "--bits", "4")
        new = only(folder)
        request = new.require_request()
        data = select_samples(folder.folder, 3, 1).to_bytes()
        settings = msgspec.structs.replace(
            request.settings, sample_set_sha256=hashlib.sha256(data).hexdigest()
        )
        for path in [new.request_path, *(folder.folder.root / "sample_sets").iterdir()]:
            path.unlink()
        place = folder.folder.sensitivity(settings.id)
        place.write_request(msgspec.structs.replace(request, settings=settings))
        place.old_samples_path.write_bytes(data)
        folder.store._redis.flushall()
        return folder

    def test_it_is_collected(self, old: Folder) -> None:
        assert old.call("collect").exit_code == 3
        digest = only(old).require_request().settings.sample_set_sha256
        assert blobs(old) == [digest]
        (pair,) = old.pairs
        old.leave(pair, exact_shard(pair, images=3).to_bytes())
        assert old.call("collect").exit_code == 0
        assert blobs(old) == []

    def test_what_was_measured_can_be_added_to(self, old: Folder) -> None:
        before = only(old).root
        enqueue(old, "--bits", "8")
        assert only(old).root == before
        assert only(old).require_request().bits == (4, 8)

    def test_a_worker_reads_it(self, old: Folder, tmp_path: Path) -> None:
        settings = only(old).require_request().settings
        old.call("collect")
        samples = fetch_samples(settings, old.store, tmp_path / "cache", None)
        assert samples.equals(select_samples(old.folder, 3, 1))
        old.store._redis.flushall()
        for calib_dir in (None, old.folder.root):
            cache = tmp_path / "cache" if calib_dir is None else tmp_path / "empty"
            assert fetch_samples(settings, old.store, cache, calib_dir).equals(samples)


def test_a_worker_takes_parts_from_the_folder_the_cache_or_the_store(folder: Folder, tmp_path: Path) -> None:
    enqueue(folder, "--bits", "4")
    settings = only(folder).require_request().settings
    whole = select_samples(folder.folder, 3, 1)
    assert fetch_samples(settings, folder.store, tmp_path / "cache", None).equals(whole)
    folder.store._redis.flushall()
    assert fetch_samples(settings, folder.store, tmp_path / "cache", None).equals(whole)
    assert fetch_samples(settings, folder.store, tmp_path / "empty", folder.folder.root).equals(whole)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"parts": []}', b'{"parts": ["../x"]}', b"PK", b"\x00"])
def test_what_is_no_sample_set_is_refused(data: bytes) -> None:
    with pytest.raises(ShardCorruptError):
        read_sample_set("0" * 64, lambda digest: data)


def test_parts_that_do_not_fit_together_are_refused() -> None:
    shard = calibration_shard(0)
    part = SampleSet(
        x=shard.x[:1],
        timestep=shard.timestep[:1],
        sigma=shard.sigma[:1],
        x_next=shard.x[1:2],
        sigma_next=shard.sigma[1:2],
        has_next=np.array([True]),
        step_index=np.array([0]),
        image=np.array([0]),
        image_index=np.array([0]),
        conditioning={name: array[None] for name, array in shard.conditioning.items()},
    )
    changed = SampleSet(**{name: getattr(part, name) for name in SampleSet._layout} | {"x": part.x[:, :4]})
    with pytest.raises(ShardCorruptError, match="don't fit together"):
        join([part, changed])
    two = SampleSet(
        **{name: getattr(part, name) for name in SampleSet._layout}
        | {"image_index": np.array([0, 1])}
        | {"conditioning": {name: np.repeat(array, 2, 0) for name, array in part.conditioning.items()}}
    )
    with pytest.raises(ShardCorruptError, match="several images"):
        join([part, two])
