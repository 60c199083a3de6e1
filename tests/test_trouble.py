"""What lasts and can't be mended by waiting: it is named, the rest goes on, and the exit code is 3."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from redis import Redis

from producer import drops
from producer.drops import Drops
from producer.folder.intake import Dropped
from producer.folder.tasks import exact_tasks
from producer.kinds.sensitivity import SensitivityPart
from shared.errors import InputError
from shared.model_card import ModelCard, encode_model_card
from tests.calibration_shards import CARD, calibration_shard
from tests.folders import Folder
from tests.tasks import SETTINGS, record_of
from tests.test_collect_sensitivity import exact_shard


@pytest.fixture
def new_folder(tmp_path: Path, redis: Redis, redis_url: str) -> Any:
    return lambda images: Folder(tmp_path / "calib", redis, redis_url, images)


@pytest.mark.slow
def test_a_broken_machine_makes_no_collector_wait_for_ever(new_folder: Any) -> None:
    """After 50 bad shards its tasks are given up; a good image is collected all the same."""
    folder = new_folder(60)
    folder.leave(folder.images[0], calibration_shard(0).to_bytes())
    for task in folder.images[1:]:
        folder.leave(task, b"broken", host="air")
    command = [sys.executable, "-m", "producer.cli", *folder.arguments("collect", "--wait")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        done = 0
        while process.poll() is None:
            done += folder.work_badly()
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 3, output
    # Of 59 bad shards 50 were enqueued again; those were bad once more.
    assert done == 50
    assert "calibration: 1 of 60, 59 missing (59 given up)" in output
    assert "109 shards from air were dropped, damaged; the last one: image " in output
    assert "59 tasks are not enqueued again by this command: mend or stop the machines named above" in output
    # The next command tries again.
    assert folder.call("collect").exit_code == 3
    assert len(folder.queue.in_flight().queued) == 59


def test_drops_are_counted_by_task_host_and_cause() -> None:
    counted = Drops()
    for time in range(drops.MAX_DROPS_OF_A_TASK):
        assert not counted.given_up
        assert counted.summary() == []
        counted.add(
            [Dropped("cal-1", "air", "damaged", f"line {time}"), Dropped("cal-2", "", "odd", "other")]
        )
    assert counted.given_up == {
        "cal-1": "its shard was damaged 4 times, last from air",
        "cal-2": "its shard was odd 4 times, last from an unknown host",
    }
    assert counted.summary()[:2] == [
        "4 shards from air were dropped, damaged; the last one: line 3",
        "4 shards from an unknown host were dropped, odd; the last one: other",
    ]


@pytest.fixture
def measured(new_folder: Any) -> Folder:
    """Two images, collected, and one of two pairs."""
    folder: Folder = new_folder(2)
    folder.leave_images()
    assert folder.call("collect").exit_code == 0
    assert folder.call("enqueue-sensitivity", "--bits", "4,8").exit_code == 0
    pair = folder.pairs[0]
    folder.leave(pair, exact_shard(pair, images=2).to_bytes())
    assert folder.call("collect").exit_code == 3
    return folder


def test_the_relays_count_is_right_after_each_pass(new_folder: Any, redis: Redis) -> None:
    folder = new_folder(2)
    folder.leave_images()
    beyond = msgspec.structs.replace(folder.images[0], image_index=99)
    folder.leave(beyond, b"of a folder that wants more images")
    redis.delete("bitfleet:relay:used")
    assert folder.store.used_bytes == 0
    folder.call("collect")
    assert folder.store.used_bytes == len(b"of a folder that wants more images")
    redis.delete(f"bitfleet:shard:{SETTINGS.id}:{beyond.id}")
    assert folder.call("collect").exit_code == 0
    assert folder.store.used_bytes == 0


class TestModelCard:
    @pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"{")])
    def test_it_comes_back(self, measured: Folder, damage: Any) -> None:
        path = measured.folder.model_path
        before = path.read_bytes()
        damage(path)
        result = measured.call("collect")
        assert result.exit_code == 3
        assert "sensitivity" in result.output
        assert path.read_bytes() == before
        assert measured.call("enqueue-sensitivity", "--bits", "2").exit_code == 0

    def test_a_folder_of_an_older_revision_gets_its_copy(self, measured: Folder) -> None:
        measured.folder.model_copy_path.unlink()
        measured.call("collect")
        assert measured.folder.model_copy_path.read_bytes() == measured.folder.model_path.read_bytes()

    def test_without_any_copy_one_image_is_drawn_again(self, measured: Folder) -> None:
        folder = measured.folder
        folder.model_path.unlink()
        folder.model_copy_path.unlink()
        looked = measured.call("status")
        assert looked.exit_code == 0
        assert folder.records.read().keys() == {task.id for task in measured.images}
        # Nothing that is missing is ever complete.
        result = measured.call("collect")
        assert result.exit_code == 3
        assert "model.json is lost; one image is to be drawn again to restore it" in result.output
        assert "calibration: 1 of 2, 1 missing (1 queued or running)" in result.output
        assert "sensitivity" in result.output
        assert "1 of 2, 1 missing" in result.output
        refused = measured.call("enqueue-sensitivity", "--bits", "2")
        assert refused.exit_code == 2
        assert "producer collect" in refused.output
        # Another model's image does not stand in for it.
        other = msgspec.structs.replace(CARD, fingerprint="0" * 64)
        stranger = calibration_shard(0)
        object.__setattr__(stranger, "model_json", as_bytes(other))
        measured.leave(measured.images[0], stranger.to_bytes(), fingerprint="0" * 64)
        assert "has other model files" in measured.call("collect").output
        measured.leave(measured.images[0], calibration_shard(0).to_bytes())
        assert "calibration: 2 of 2" in measured.call("collect").output
        assert folder.read_model() == CARD


def as_bytes(card: ModelCard) -> Any:
    return np.frombuffer(encode_model_card(card), dtype=np.uint8)


class TestOneRequest:
    """One request's trouble stops no other."""

    @pytest.fixture
    def two(self, measured: Folder) -> Folder:
        """A second sensitivity run, of another group size."""
        assert measured.call("enqueue-sensitivity", "--bits", "4", "--group-size", "32").exit_code == 0
        return measured

    def second(self, folder: Folder) -> Any:
        (place,) = [
            place
            for place in folder.folder.sensitivities()
            if place.require_request().settings.group_size == 32
        ]
        return place

    @pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"{")])
    def test_a_request_that_is_lost_or_damaged(self, two: Folder, damage: Any) -> None:
        second = self.second(two)
        second.records.root.mkdir(parents=True, exist_ok=True)
        damage(second.request_path)
        (pair,) = [task for task in self.first_pairs(two, second) if task.bits == 8]
        two.leave(pair, exact_shard(pair, images=2).to_bytes())
        result = two.call("collect", "--wait")
        assert result.exit_code == 3
        assert str(second.request_path) in result.output
        assert "2 of 2" in result.output

    def test_results_that_can_not_be_written(self, two: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
        write = SensitivityPart.write_results

        def fail_for_second(part: SensitivityPart, reasons: dict[str, str]) -> Path | None:
            if part.request.settings.group_size == 32:
                raise InputError("for a test")
            return write(part, reasons)

        monkeypatch.setattr(SensitivityPart, "write_results", fail_for_second)
        for place in two.folder.sensitivities():
            for pair in two.pairs_of(place):
                two.store.put(record_of(pair, data := exact_shard(pair, images=2).to_bytes()), data)
        result = two.call("collect")
        assert result.exit_code == 3
        assert "no results were written: for a test" in result.output
        assert result.output.count("report: ") == 1

    def first_pairs(self, folder: Folder, second: Any) -> list[Any]:
        places = [place for place in folder.folder.sensitivities() if place.root != second.root]
        return exact_tasks(places[0].require_request(), folder.run_file)
