"""`producer doctor`: what it finds around a sound run, and how it names what is wrong."""

import json
from pathlib import Path

import pytest
from redis import Redis

from tests.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str) -> Fleet:
    return Fleet(tmp_path, redis_url, tmp_path / "cache")


def checks(fleet: Fleet, *arguments: str, code: int = 0) -> dict[str, dict[str, str]]:
    said = fleet.producer("doctor", "--json", "--prompt-csv", "prompts.csv", *arguments, code=code)
    found = json.JSONDecoder().raw_decode(said)[0]["checks"]
    return {check["name"]: check for check in found}


def test_a_sound_run(fleet: Fleet, redis: Redis) -> None:
    redis.config_set("appendonly", "yes")
    fleet.enqueue(2)
    found = checks(fleet)
    assert {check["outcome"] for check in found.values()} == {"ok"}
    assert set(found) >= {"Redis", "Redis version", "Redis rights", "Redis room", "Clock", "Store", "Folder"}
    assert found["Prompts"]["found"] == "prompts.csv has the 2 prompts of the run"
    assert found["Model"]["found"].startswith("tiny-sd3, 64 px, 3 steps")


def test_a_shard_that_was_altered(fleet: Fleet) -> None:
    fleet.enqueue(1)
    fleet.work("--quiet")
    fleet.producer("collect")
    fleet.producer("enqueue-levels", "--images", "0")
    fleet.work("--quiet")
    fleet.producer("collect")
    assert checks(fleet)["Records"]["found"] == "1 measurements are as their records say"
    (shard,) = fleet.calib.glob("weights/*/shards/*.npz")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    sample = fleet.calib / "samples" / "image-00000-step-001.npz"
    sample.write_bytes(sample.read_bytes()[:-1])
    found = checks(fleet, code=2)
    for name in ("Records", "Samples"):
        assert found[name]["outcome"] == "failed"
        assert "`producer collect --wait`" in found[name]["cure"]


def test_the_store_of_another_run(fleet: Fleet, tmp_path: Path) -> None:
    fleet.enqueue(1, "--store", str(tmp_path / "store"))
    assert checks(fleet)["Store"]["outcome"] == "ok"
    fleet.enqueue(1, "--calib-dir", "other", "--store", str(tmp_path / "other_store"))
    found = checks(fleet, "--store", str(tmp_path / "other_store"), code=2)
    assert "is not the store of this folder's run" in found["Store"]["found"]


def test_nonsense_is_one_line_each(fleet: Fleet) -> None:
    said = fleet.producer(
        "doctor", "--calib-dir", "none", "-m", "foo", "--redis-url", "redis://localhost:1", code=2
    )
    lines = said.splitlines()
    assert [line.partition(":")[0].split()[-1] for line in lines if line.startswith("FAILED")] == [
        "Redis", "Model", "Prompts",
    ]  # fmt: skip
    assert "3 of 7 checks failed" in lines
    assert "Error:" not in said.replace("Error 111", "")


def test_a_redis_with_little_room_is_told(fleet: Fleet, redis: Redis) -> None:
    redis.config_set("maxmemory", "500mb")
    redis.config_set("maxmemory-policy", "noeviction")
    assert checks(fleet)["Redis room"]["outcome"] == "warning"
