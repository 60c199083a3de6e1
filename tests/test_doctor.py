"""`worker doctor`: what it finds on a sound machine, and how it names what is wrong."""

import json
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner
from redis import Redis

import worker.cli
from shared.doctor.check import Check, ok, run_checks
from shared.doctor.surroundings import check_model_files, check_redis
from worker.doctor.access import check_access
from worker.doctor.memory import check_memory
from worker.doctor.numerics import TOLERANCES, _forward, check_gradients, on, step_differences
from worker.doctor.system import check_mlx_version, check_python, check_system
from worker.engine.block_gradients import record_states
from worker.engine.layers import find_linear
from worker.engine.replay import Replay
from worker.families.registry import trial_family


@pytest.mark.slow
def test_a_sound_machine(redis_url: str, redis: Redis) -> None:
    redis.config_set("appendonly", "yes")
    arguments = ["doctor", "--json", "--redis-url", redis_url, "--model", "demo"]
    result = CliRunner().invoke(worker.cli.main, arguments)
    assert result.exit_code == 0, result.output
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert {check["outcome"] for check in checks.values()} == {"ok"}
    for name in ("sd3 passes", "sd3 gradients", "flux passes", "flux gradients", "quantized products"):
        assert checks[name]["figures"]
        assert max(checks[name]["figures"].values()) < 1e-3
    assert {"Python", "MLX", "Device", "Redis", "Redis rights", "Clock", "Store", "Disk"} <= set(checks)


def test_the_first_wrong_step_is_named() -> None:
    """A device that computes one block wrongly: steps behind it start from the right state again."""
    family = trial_family("sd3", full=False)
    assert family is not None
    forward = _forward(family, mx.float32)
    replay = Replay(family.stages, family.after_blocks, forward)
    with on(mx.cpu):
        states, output = record_states(replay, forward)
    path = replay.path_at(5)
    broken = find_linear(family.transformer, f"{path}.image_transformer_block.mlp.fc1")
    broken.weight = 1.01 * broken.weight
    differences = step_differences(replay, forward, states, output, mx.default_device())
    assert [step for step, found in differences.items() if found > TOLERANCES[mx.float32]] == [path]


def test_wrong_gradients_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def gradients(family: object) -> dict[str, mx.array]:
        calls.append(family)
        return {"last": mx.ones((2, 2)), "first": (1 + len(calls) / 10) * mx.ones((2, 2))}

    monkeypatch.setattr("worker.doctor.numerics._gradients", gradients)
    (check,) = check_gradients("sd3", full=False)
    assert check.outcome == "failed"
    assert "1 of 2 layers are wrong" in check.found
    assert "the first is first" in check.found


def test_a_check_that_raises_has_failed_and_the_others_go_on() -> None:
    def broken() -> Iterator[Check]:
        yield ok("before", "fine")
        raise RuntimeError("[metal::load_device] No Metal device available.\nmore")

    checks = list(run_checks([("Device", broken), ("Disk", lambda: [ok("Disk", "room")])]))
    assert [(check.name, check.outcome) for check in checks] == [
        ("before", "ok"),
        ("Device", "failed"),
        ("Disk", "ok"),
    ]
    assert checks[1].found == "RuntimeError: [metal::load_device] No Metal device available."


def test_an_intel_python_on_an_apple_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr("worker.doctor.system._is_translated", lambda: True)
    (check,) = check_python()
    assert check.outcome == "failed"
    assert "x86_64, run by Rosetta" in check.found
    assert "arm64" in check.cure


@pytest.mark.parametrize(("release", "outcome"), [("13.6", "failed"), ("14.0", "ok"), ("26.1", "ok")])
def test_macos(monkeypatch: pytest.MonkeyPatch, release: str, outcome: str) -> None:
    monkeypatch.setattr(platform, "mac_ver", lambda: (release, ("", "", ""), "arm64"))
    assert [check.outcome for check in check_system()] == [outcome]


@pytest.mark.parametrize(("version", "outcome"), [("0.31.2", "failed"), ("0.32.4", "ok"), ("0.32.10", "ok")])
def test_versions_of_mlx(monkeypatch: pytest.MonkeyPatch, version: str, outcome: str) -> None:
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    monkeypatch.setattr(metadata, "version", lambda _: version)
    assert [check.outcome for check in check_mlx_version()] == [outcome]
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    assert [check.name for check in check_mlx_version()][-1] == "TF32"


def test_a_redis_that_deletes_is_refused(redis_url: str, redis: Redis) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    result = {check.name: check for check in check_redis(redis_url, None)}
    assert result["Redis memory"].outcome == "failed"
    assert "noeviction" in result["Redis memory"].cure
    assert not redis.keys("bitfleet:doctor:*")


def test_no_redis_and_no_store(tmp_path: Path, redis_url: str) -> None:
    (check,) = check_redis(f"unix://{tmp_path}/none.sock", None)
    assert (check.outcome, "no Redis at" in check.found) == ("failed", True)
    store = [check for check in check_redis(redis_url, str(tmp_path / "none")) if check.name == "Store"]
    assert store[0].outcome == "failed"
    assert str(tmp_path) in store[0].found
    assert [check.outcome for check in check_redis(None, None)] == ["skipped"]


@pytest.mark.parametrize(("answer", "outcome"), [(None, "ok"), (ConnectionError(), "warning")])
def test_access(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: Exception | None, outcome: str
) -> None:
    def asked(self: object, repo: str) -> None:
        if answer is not None:
            raise answer

    monkeypatch.setattr("huggingface_hub.HfApi.auth_check", asked)
    model = "argmaxinc/mlx-FLUX.1-dev"
    assert [check.outcome for check in check_access(model, tmp_path)] == ["warning", outcome]
    assert [check.outcome for check in check_access("demo", tmp_path)] == ["ok"]


def test_memory() -> None:
    model = "argmaxinc/mlx-FLUX.1-dev"
    (short,) = check_memory(model, offered=40 * 10**9)
    assert short.outcome == "warning"
    assert "a verification (" in short.found
    assert "levels" not in short.found
    assert [check.outcome for check in check_memory(model, offered=10**12)] == ["ok"]


def test_model_files(tmp_path: Path) -> None:
    model = "argmaxinc/mlx-stable-diffusion-3-medium"
    (missing,) = check_model_files(model, tmp_path)
    assert (missing.outcome, "4.06 GB" in missing.found) == ("warning", True)
    file = (
        tmp_path / "models--argmaxinc--mlx-stable-diffusion-3-medium" / "snapshots" / "abc" / "x.safetensors"
    )
    file.parent.mkdir(parents=True)
    file.touch()
    assert [check.outcome for check in check_model_files(model, tmp_path)] == ["ok"]
