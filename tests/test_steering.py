"""Cancelling, retrying, and telling what failed: the folder remembers, and nothing is lost or done twice."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from shared.jobs.history import Event, add_event, read_events
from shared.jobs.task_queue import given_up_key
from tests.calibration_shards import calibration_shard
from tests.folders import Folder

IMAGES = 6


@pytest.fixture
def folder(tmp_path: Path, redis: Redis, redis_url: str) -> Folder:
    """Six images that wait."""
    folder = Folder(tmp_path / "calib", redis, redis_url, IMAGES)
    folder.call("collect")
    assert len(folder.queue.in_flight().queued) == IMAGES
    return folder


def said(folder: Folder, *arguments: str, code: int = 0) -> str:
    result = folder.call(*arguments)
    assert result.exit_code == code, result.output
    return str(result.output)


def fail(folder: Folder, *places: int) -> None:
    """As a worker would leave jobs that it gave up."""
    queue, redis = folder.queue, folder.queue.connection
    for place in places:
        task_id = folder.images[place].id
        queue.withdraw([task_id])
        for detail in (
            "Traceback (most recent call last):\n  a line\nValueError: no \x1b[31mluck",
            "Signal 9",
        ):
            add_event(redis, task_id, Event(outcome="started", host="air", worker="air-1"))
            add_event(redis, task_id, Event(outcome="failed", host="air", worker="air-1", detail=detail))
        redis.zadd(queue.failed_job_registry.key, {task_id: 2e9})
        redis.zadd(given_up_key(queue.name), {task_id: 2e9})


def lease(folder: Folder, place: int) -> None:
    """As if a worker ran it."""
    queue, task_id = folder.queue, folder.images[place].id
    queue.connection.lrem(queue.key, 0, task_id)
    queue.connection.zadd(queue.started_job_registry.key, {f"{task_id}:x": 2e9})


class TestCancel:
    def test_what_waits_vanishes_and_what_runs_loses_its_lease(self, folder: Folder) -> None:
        lease(folder, 0)
        folder.queue.connection.zadd(folder.queue.delayed_key, {folder.images[1].id: 2e9})
        folder.queue.connection.lrem(folder.queue.key, 0, folder.images[1].id)
        text = said(folder, "cancel", "image [012]")
        assert "3 tasks cancelled: 2 were queued, 1 running" in text
        in_flight = folder.queue.in_flight()
        assert in_flight.ready == tuple(task.id for task in folder.images[3:])
        assert (in_flight.delayed, in_flight.started) == ((), frozenset())
        kept = {key.decode() for key in folder.queue.connection.keys("rq:job:*")}
        assert kept == {f"rq:job:{task.id}" for task in folder.images[3:]}

    def test_no_collector_enqueues_it_again_and_one_that_waits_ends(self, folder: Folder) -> None:
        said(folder, "cancel", "image [012]")
        folder.leave_images()
        folder.store.discard(folder.run_file.settings.id, folder.images[0].id)
        folder.queue.withdraw(task.id for task in folder.images)
        # Two were finished all the same, while they were cancelled: nothing is thrown away.
        text = said(folder, "collect", "--wait", code=3)
        assert "calibration: 5 of 6, 1 missing (1 cancelled)" in text
        assert folder.queue.in_flight().ids == frozenset()
        assert "calibration: 1 cancelled; `producer retry" in said(folder, "status")

    def test_cancelled_with_what_is_finished_and_failed(self, folder: Folder) -> None:
        fail(folder, 0)
        folder.leave(folder.images[1], calibration_shard(1).to_bytes())
        folder.queue.withdraw([folder.images[1].id])
        text = said(folder, "cancel", "--all")
        assert "4 tasks cancelled: 4 were queued, 0 running" in text
        assert "1 task finished, which stays" in text
        assert "1 task failed" in text
        again = said(folder, "cancel", "calibration")
        assert "nothing to cancel" in again
        assert "4 tasks cancelled before" in again
        text = said(folder, "collect", "--wait", code=3)
        assert "1 of 6, 5 missing (1 failed, 4 cancelled)" in text

    @pytest.mark.parametrize("way", [["retry", "image 1"], ["retry", "--all"], ["enqueue"]])
    def test_it_is_wanted_again_when_somebody_asks(self, folder: Folder, way: list[str]) -> None:
        said(folder, "cancel", folder.images[1].id)
        assert "nothing to retry" in said(folder, "retry")
        if way == ["enqueue"]:
            folder.folder.cancelled.remove([folder.images[1].id])
            said(folder, "collect", code=3)
        else:
            assert "0 failed and 1 cancelled tasks enqueued again" in said(folder, *way)
        assert folder.images[1].id in folder.queue.in_flight().queued
        assert not folder.folder.cancelled.path.exists()

    @pytest.mark.parametrize("what", [["image 1", "image 2"], ["--all"], ["calibration"]])
    def test_what_it_says_to_type_is_what_undoes_it(self, folder: Folder, what: list[str]) -> None:
        for text in (said(folder, "cancel", *what), said(folder, "status"), said(folder, "retry")):
            hint = re.search(r"`producer (retry [^`]*)` asks for them again", text)
            assert hint
            assert "0 failed" in said(folder, *shlex.split(hint.group(1)))
            said(folder, "cancel", *what)

    def test_a_new_enqueue_asks_for_it_again(self, tmp_path: Path, redis_url: str) -> None:
        from tests.fleet import Fleet

        fleet = Fleet(tmp_path / "fleet", redis_url, tmp_path)
        fleet.enqueue(4)
        assert "4 tasks cancelled" in fleet.producer("cancel", "--all")
        assert "4 images enqueued" in fleet.enqueue(4)
        assert not (fleet.calib / "cancelled.json").exists()

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ([], "say what to cancel"),
            (["--all", "calibration"], "say what to cancel"),
            (["imgae*"], "nothing here is named 'imgae*': the parts are 'calibration', a task is named like"),
            (["image 1", "\x1b[2J"], r"nothing here is named '\\u001b[2J'"),
        ],
    )
    def test_nonsense(self, folder: Folder, arguments: list[str], says: str) -> None:
        text = said(folder, "cancel", *arguments, code=2)
        assert says in text
        assert len(text.splitlines()) == 1
        assert folder.folder.cancelled.read() == frozenset()

    def test_a_damaged_note_is_told(self, folder: Folder) -> None:
        folder.folder.cancelled.path.write_text("{")
        assert "cancelled.json can't be read" in said(folder, "collect", code=2)


class TestFailures:
    def test_each_with_all_that_happened(self, folder: Folder) -> None:
        fail(folder, 0, 3)
        text = said(folder, "failures")
        assert f"image 3 ({folder.images[3].id}, calibration): 2 attempts on air" in text
        assert "air air-1: failed: Traceback" in text
        assert "ValueError: no \\u001b[31mluck" in text
        assert "2 tasks failed; `producer retry`" in text
        assert "image 0" not in said(folder, "failures", "image 3")
        assert "no task has failed" in said(folder, "failures", "image 1")

    def test_as_data(self, folder: Folder) -> None:
        fail(folder, 3)
        (failure,) = json.loads(said(folder, "failures", "--json"))
        events: list[dict[str, Any]] = failure.pop("events")
        assert failure == {"task": folder.images[3].id, "label": "image 3", "part": "calibration"}
        assert [event["outcome"] for event in events] == ["started", "failed"] * 2
        assert set(events[0]) == {"outcome", "host", "worker", "start", "detail", "at"}
        assert json.loads(said(folder, "failures", "image 0", "--json")) == []

    def test_retried_they_begin_anew(self, folder: Folder) -> None:
        fail(folder, 0, 3)
        said(folder, "cancel", "image 5")
        assert "1 failed and 0 cancelled tasks enqueued again" in said(folder, "retry", "image [02]")
        assert read_events(folder.queue.connection, folder.images[0].id) == []
        assert "1 failed and 0 cancelled tasks enqueued again" in said(folder, "retry")
        assert folder.folder.cancelled.read() == {folder.images[5].id}
        assert len(folder.queue.in_flight().queued) == IMAGES - 1
        assert "nothing to retry: none of these tasks has failed; 1 task" in said(folder, "retry")
