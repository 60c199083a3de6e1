"""Which runs are there, whose they are, who holds the room, and how one is forgotten."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from redis import Redis

from producer.cli import main
from producer.fleet import open_fleet
from producer.jobs.claims import claims_key
from producer.steering.room import crowding
from shared.jobs.history import Event, add_event
from shared.stores.relay_store import RelayStore
from tests.calibration_shards import calibration_shard
from tests.fleet import Fleet
from tests.folders import Folder
from tests.tasks import SENSITIVITY, SETTINGS, layer_task

LIMIT = 1_000_000
EMPTY = "the Redis relay and its queue hold nothing\n"


@pytest.fixture
def folder(tmp_path: Path, redis: Redis, redis_url: str) -> Folder:
    """Two images: one finished, and one that waits."""
    folder = Folder(tmp_path / "calib", redis, redis_url, 2)
    folder.call("collect")
    folder.queue.withdraw([folder.images[0].id])
    folder.leave(folder.images[0], calibration_shard(0).to_bytes())
    return folder


@pytest.fixture
def measured(tmp_path: Path, redis: Redis, redis_url: str) -> Folder:
    """Two images that are collected, with measurements of them that wait."""
    folder = Folder(tmp_path / "calib", redis, redis_url, 2)
    folder.leave_images()
    folder.call("collect")
    enqueued = folder.call("enqueue-sensitivity", "--bits", "4,8")
    assert enqueued.exit_code == 0, enqueued.output
    return folder


def call(redis_url: str, *arguments: str, code: int = 0, answer: str = "") -> str:
    result = CliRunner().invoke(main, [*arguments, "--redis-url", redis_url], input=answer)
    assert result.exit_code == code, result.output
    return str(result.output)


def keys(redis: Redis) -> set[str]:
    """All that there is, but for what belongs to no run."""
    every = {key.decode() for key in redis.keys("*")}
    return {key for key in every if not key.startswith(("rq:queues", "bitfleet:runs:"))}


class TestRuns:
    def test_a_run_with_its_folder_and_sizes(self, folder: Folder, redis_url: str) -> None:
        text = call(redis_url, "runs")
        assert f"run {SETTINGS.id} of {SETTINGS.model}: 1 queued, 1 finished, to be collected (" in text
        assert f"{folder.folder.root} on " in text
        (run,) = json.loads(call(redis_url, "runs", "--json"))
        assert (run["queued"], run["running"], run["failed"], run["finished"]) == (1, 0, 0, 1)
        assert run["shard_bytes"] == len(calibration_shard(0).to_bytes())
        assert (run["folder"], run["model"]) == (str(folder.folder.root), SETTINGS.model)
        assert 0 <= run["seen"] <= run["since"] < 60

    def test_a_run_that_no_folder_claims(self, folder: Folder, redis: Redis, redis_url: str) -> None:
        """As an older revision left it, whose folder is gone: what is known is in jobs and records."""
        folder.leave(layer_task(), b"a shard")
        folder.queue.enqueue_tasks([layer_task(bits=2)])
        redis.delete(claims_key(folder.queue.name))
        (run,) = json.loads(call(redis_url, "runs", "--json"))
        assert (run["run"], run["folder"]) == (SETTINGS.id, None)
        assert run["namespaces"] == sorted([SETTINGS.id, SENSITIVITY.id])
        assert (run["queued"], run["finished"]) == (2, 2)
        assert "its folder is not known" in call(redis_url, "runs")

    def test_of_what_is_collected_nothing_is_left(self, folder: Folder, redis_url: str) -> None:
        folder.leave(folder.images[1], calibration_shard(1).to_bytes())
        folder.queue.withdraw([folder.images[1].id])
        assert folder.call("collect").exit_code == 0
        assert call(redis_url, "runs") == EMPTY

    def test_garbage_ends_nothing(self, folder: Folder, redis: Redis, redis_url: str) -> None:
        claims = {b"\xff": b"\xff", b"cal-x-": b"{}", b"x": b"[]"}
        redis.hset(claims_key(folder.queue.name), mapping=claims)  # type: ignore[arg-type]
        redis.hset("bitfleet:relay:used", "\x1b[2J", "5")
        redis.rpush(folder.queue.key, b"\xff\x1b", "x-y-z", "cal-")
        assert "\x1b" not in call(redis_url, "runs")

    def test_a_full_relay_says_who_holds_it(self, folder: Folder, redis_url: str) -> None:
        folder.store.set_limit(LIMIT)
        assert "the relay is full" not in folder.call("status").output
        folder.leave(layer_task(), bytes(LIMIT))
        text = folder.call("status").output
        assert f"the relay is full: run {SETTINGS.id} of " in text
        assert f"`producer forget {SETTINGS.id}`" in text
        # One that waits says it once, not anew each time that it looks.
        fleet = open_fleet(redis_url, None)
        assert list(crowding(fleet)) == list(crowding(fleet)) != []


class TestForget:
    def test_a_run_whose_folder_was_deleted(self, measured: Folder, redis: Redis, redis_url: str) -> None:
        (first, second, *_) = measured.pairs
        add_event(redis, first.id, Event(outcome="failed", host="air", worker="air-1"))
        redis.zadd(measured.queue.failed_job_registry.key, {first.id: 2e9})
        measured.leave(second, b"a shard")
        assert redis.hlen("bitfleet:relay:blobs") == 3
        shutil.rmtree(measured.folder.root)
        text = call(redis_url, "forget", SETTINGS.id[:4], "--yes")
        assert f"run {SETTINGS.id} of {measured.folder.root} on " in text
        assert "are free" in text
        assert keys(redis) == set()
        assert call(redis_url, "runs") == EMPTY

    def test_another_run_keeps_what_it_has(self, measured: Folder, redis: Redis, redis_url: str) -> None:
        before = keys(redis)
        theirs = Folder(measured.folder.root.parent / "other", redis, redis_url, 0)
        run = msgspec.structs.replace(SETTINGS, num_steps=5)
        theirs.folder.run_path.unlink()
        theirs.folder.write_run(msgspec.structs.replace(theirs.run_file, settings=run, prompts=("a", "b")))
        theirs.call("collect")
        assert len(json.loads(call(redis_url, "runs", "--json"))) == 2
        call(redis_url, "forget", run.id, "--yes")
        assert keys(redis) == before
        assert measured.call("collect").exit_code == 3

    def test_samples_of_no_run(self, measured: Folder, redis: Redis, redis_url: str) -> None:
        call(redis_url, "forget", SETTINGS.id, "--yes")
        RelayStore(redis).put_blob("a" * 64, b"left behind by an older revision")
        assert "unclaimed: samples for the workers (32 bytes)" in call(redis_url, "runs")
        call(redis_url, "forget", "unclaimed", "--yes")
        assert keys(redis) == set()

    def test_it_asks_first(self, folder: Folder, redis: Redis, redis_url: str) -> None:
        before = keys(redis)
        assert "nothing was deleted" in call(redis_url, "forget", SETTINGS.id, answer="n\n")
        assert "nobody answered; --yes answers" in call(redis_url, "forget", SETTINGS.id, code=2)
        assert keys(redis) == before
        assert "forgotten" in call(redis_url, "forget", SETTINGS.id, answer="y\n")

    @pytest.mark.parametrize("name", ["nothing", "", "../..", "\x1b[2J", SETTINGS.id[:3]])
    def test_nonsense_is_one_line(self, folder: Folder, redis_url: str, name: str) -> None:
        text = call(redis_url, "forget", name, "--yes", code=2)
        assert f"there is {SETTINGS.id}: `producer runs` lists them" in text
        assert len(text.splitlines()) == 1
        assert "\x1b" not in text

    def test_in_a_folder_store_nothing_else_is_touched(self, tmp_path: Path, redis_url: str) -> None:
        fleet = Fleet(tmp_path / "fleet", redis_url, tmp_path)
        fleet.enqueue(2, "--store", "store")
        mine = tmp_path / "fleet/store/mine/notes.json"
        mine.parent.mkdir()
        mine.write_text("{}")
        text = fleet.producer("runs", "--store", "store")
        assert text.count("run ") == 1
        assert "2 queued" in text
        fleet.producer("forget", text.split()[1], "--yes", "--store", "store")
        assert "hold nothing" in fleet.producer("runs", "--store", "store")
        assert mine.exists()
