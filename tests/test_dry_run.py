"""`--dry-run` tells what something costs. It writes nothing anywhere, and needs neither Redis nor a store."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis

from producer.cli import main
from tests.folders import Folder
from tests.planned import planned_folder, prompt_csv

NOWHERE = "unix:///no/redis.sock"
UNKNOWN = f"not known: room in the store, and who is connected (no Redis at {NOWHERE})"
TINY = ["--model", "tiny-sd3", "--num-images", "4", "--num-steps", "3"]


def told(command: str, *arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(main, [command, "--dry-run", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return str(result.output)


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in root.rglob("*")}


@pytest.mark.parametrize("with_redis", [True, False])
def test_images(tmp_path: Path, redis_url: str, redis: Redis, with_redis: bool) -> None:
    prompts = prompt_csv(tmp_path / "prompts.csv")
    before = files(tmp_path)
    url = redis_url if with_redis else NOWHERE
    where = ["--calib-dir", tmp_path / "a" / "calib", "--redis-url", url, "--prompt-csv", prompts]
    said = told("enqueue-calibration", *TINY, *where, "--relay-limit", "2GB")
    assert said.startswith("cost: 4 tasks, about 12 forward passes\ndisk: at most ")
    assert said.endswith("nothing was enqueued\n")
    assert (UNKNOWN in said.splitlines()) == (not with_redis)
    assert ("of shards, 2 GB are free" in said) == with_redis
    said = told("enqueue-calibration", *TINY, *where, "--store", tmp_path / "store")
    assert ("no store at" in said) == with_redis
    assert files(tmp_path) == before
    assert redis.dbsize() == 0


@pytest.mark.parametrize("with_redis", [True, False])
def test_levels_a_prediction_and_a_proof(
    tmp_path: Path, redis_url: str, redis: Redis, with_redis: bool
) -> None:
    folder, plan = planned_folder(tmp_path / "calib"), tmp_path / "plan.json"
    source = ["--prompt-csv", str(prompt_csv(tmp_path / "prompts.csv"))]
    made = CliRunner().invoke(
        main, ["plan", "--target-bpw", "4.5", "--out", str(plan), "--calib-dir", str(folder.root), *source]
    )
    assert made.exit_code == 0, made.output
    before = files(tmp_path)
    where = ["--calib-dir", folder.root, "--redis-url", redis_url if with_redis else NOWHERE]
    for command, options, count in (
        ("enqueue-levels", ["--images", "20", *source], 4),
        ("enqueue-confirm", ["--plan", plan], 32),
        ("enqueue-verification", ["--plan", plan], 8),
    ):
        said = told(command, *options, *where)
        assert said.startswith(f"cost: {count} tasks, about "), command
        assert said.endswith("nothing was enqueued\n")
        assert (UNKNOWN in said.splitlines()) == (not with_redis)
        assert files(tmp_path) == before, command
    assert redis.dbsize() == 0


@pytest.mark.parametrize("method", ["exact", "sketch"])
def test_measurements(tmp_path: Path, redis: Redis, redis_url: str, method: str) -> None:
    folder = Folder(tmp_path / "calib", redis, redis_url, 3)
    folder.leave_images()
    folder.call("collect")
    before, keys = files(tmp_path), sorted(redis.keys())
    options = ["--method", method, "--max-images", "2"]
    assert told("enqueue-sensitivity", *folder.arguments(*options)).startswith("cost: ")
    alone = told("enqueue-sensitivity", "--calib-dir", folder.folder.root, "--redis-url", NOWHERE, *options)
    assert UNKNOWN in alone.splitlines()
    assert files(tmp_path) == before
    assert sorted(redis.keys()) == keys
    assert "enqueued" in folder.call("enqueue-sensitivity", *options).output
    assert files(tmp_path) != before


def test_what_can_not_be_asked_for_is_said(tmp_path: Path) -> None:
    said = told("enqueue-levels", "--calib-dir", tmp_path / "calib", "--redis-url", NOWHERE, code=2)
    assert said.startswith(f"Error: {tmp_path / 'calib'} holds no run")
    assert not files(tmp_path)
