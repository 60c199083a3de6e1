"""Folders of other revisions: older ones are understood, and what a newer one says is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.folders import Folder
from tests.tasks import SETTINGS

# As the first release wrote them.
RUN = """{
  "settings": {"model": "tiny-sd3", "checkpoint_sha256": null, "num_steps": 4, "cfg_weight": 7.5,
    "image_size": 64, "seed": 0, "shift": 3.0, "use_t5": false, "precision": "float32",
    "prompts_sha256": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "protocol": 1},
  "prompts": ["prompt 0", "prompt 1"],
  "store_id": "relay",
  "store": null
}"""
REQUEST = """{
  "settings": {"run_id": "%s", "group_size": 64, "until": null, "protocol": 1,
    "sample_set_sha256": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"},
  "layers": ["final_layer.linear"], "bits": [4, 8], "samples": 8, "max_images": 2, "step_stride": 1,
  "sketch": null, "verify": []
}"""


@pytest.fixture
def folder(tmp_path: Path, redis: Redis, redis_url: str) -> Folder:
    """Two images and a measurement, of the first release."""
    folder = Folder(tmp_path / "calib", redis, redis_url, images=2)
    folder.folder.run_path.write_text(RUN)
    place = folder.folder.root / "sensitivity" / "5ca1ab1e5ca1"
    place.mkdir(parents=True)
    (place / "request.json").write_text(REQUEST % SETTINGS.id)
    return folder


def change(path: Path, *keys: str, **values: Any) -> None:
    content = json.loads(path.read_text())
    inner = content
    for key in keys:
        inner = inner[key]
    inner.update(values)
    path.write_text(json.dumps(content))


def test_an_older_folder_is_understood(folder: Folder) -> None:
    result = folder.call("status")
    assert result.exit_code == 0, result.output
    assert f"run {SETTINGS.id} of tiny-sd3" in result.output
    assert "sensitivity" in result.output
    assert folder.call("collect").exit_code == 3
    assert len(folder.queue.in_flight().queued) == 2


@pytest.mark.parametrize("command", ["status", "collect", "enqueue-sensitivity", "report"])
@pytest.mark.parametrize("keys", [(), ("settings",)], ids=["run.json", "its settings"])
def test_a_newer_run_is_refused_and_nothing_is_enqueued(
    folder: Folder, command: str, keys: tuple[str, ...]
) -> None:
    change(folder.folder.run_path, *keys, rounding="gptq")
    result = folder.call(command) if command != "report" else folder.call_offline(command)
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith(f"Error: {folder.folder.run_path} is not what this revision of bitfleet writes (")
    assert "`rounding`" in line
    assert line.endswith(": update bitfleet here if a newer one wrote it, or use another --calib-dir")
    assert folder.queue.in_flight().queued == ()


@pytest.mark.parametrize("keys", [(), ("settings",)], ids=["request.json", "its settings"])
def test_a_newer_request_stops_no_other(folder: Folder, keys: tuple[str, ...]) -> None:
    path = folder.folder.root / "sensitivity" / "5ca1ab1e5ca1" / "request.json"
    change(path, *keys, rounding="gptq")
    folder.leave_images()
    result = folder.call("collect", "--wait")
    assert result.exit_code == 3
    assert "calibration: 2 of 2" in result.output
    assert f"{path} is not what this revision of bitfleet writes (" in result.output
    assert folder.queue.in_flight().queued == ()


def test_a_damaged_run_is_told_from_a_newer_one(folder: Folder) -> None:
    folder.folder.run_path.write_text(RUN[:100])
    assert "run.json can't be read: " in folder.call("status").output


def test_a_newer_revisions_record_is_not_taken_for_damaged(folder: Folder) -> None:
    """Its image would be drawn again, and its samples overwritten."""
    folder.leave_images()
    folder.call("collect")
    path = folder.folder.records.root / f"{folder.images[0].id}.json"
    change(path, energy_joules=12.5)
    result = folder.call("collect")
    assert result.exit_code == 2
    assert f"{path} is not what this revision of bitfleet writes (" in result.output
    assert folder.images[0].id not in folder.queue.in_flight().queued
    # A damaged one is drawn again.
    path.write_bytes(b"{")
    assert folder.call("collect").exit_code == 3
    assert folder.images[0].id in folder.queue.in_flight().queued
