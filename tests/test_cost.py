"""What a command says it will cost, and what it refuses."""

from pathlib import Path

import pytest
from redis import Redis
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from producer.cost import MAX_PASSES, MAX_SECONDS, refuse, whole_run_passes
from producer.settings import run_settings
from shared.choices import DEFAULT_MODEL
from shared.costs import TaskSize, cost_of, kept_shard_bytes, samples_bytes
from shared.errors import InputError
from shared.jobs.tally import Tally, encode_tally
from shared.jobs.task_queue import queue_name
from shared.jobs.workers import HOST_FIELD, TALLY_FIELD
from shared.models import model_spec
from shared.runs import RunSettings
from tests.fleet import Fleet
from tests.tasks import SETTINGS

GB = 10**9


def settings(*, use_t5: bool = False) -> RunSettings:
    return run_settings(
        model=DEFAULT_MODEL,
        prompts=["a red fox"],
        num_steps=None,
        cfg_weight=None,
        image_size=None,
        seed=0,
        use_t5=use_t5,
        checkpoint=None,
    )


def test_the_default_run() -> None:
    """A sample holds a latent of 64 x 64 x 16, and for both rows 77 tokens and a vector of 2048 channels."""
    spec = model_spec(DEFAULT_MODEL)
    without = TaskSize.of(settings(), spec)
    assert samples_bytes(spec, without, 50) == 50 * 2 * (65536 + 2 * 78 * 2048)
    assert kept_shard_bytes(spec, without) == 2 * (51 * 65536 + 2 * 78 * 2048) + 3 * 512**2
    with_t5 = samples_bytes(spec, TaskSize.of(settings(use_t5=True), spec), 50)
    assert with_t5 == 50 * 2 * (65536 + 2 * (78 * 2048 + 512 * 4096))
    plan = {"images": 100, "samples": 80, "layers": None, "bits": 6}
    exact = whole_run_passes(settings(), probes=None, **plan)  # type: ignore[arg-type]
    sketch = whole_run_passes(settings(), probes=8, **plan)  # type: ignore[arg-type]
    assert exact - 5000 == pytest.approx(86_820)
    assert sketch - 5000 == pytest.approx(2152)


@pytest.mark.parametrize(
    ("passes", "seconds", "refused"),
    [
        (MAX_PASSES, None, False),
        (MAX_PASSES + 1, None, True),
        (MAX_PASSES + 1, MAX_SECONDS, False),
        (1, MAX_SECONDS + 1, True),
    ],
)
def test_what_takes_weeks_is_refused(passes: float, seconds: float | None, refused: bool) -> None:
    if not refused:
        refuse(passes, seconds, exact=True)
        return
    with pytest.raises(InputError, match=r"--method sketch.*give --yes if you mean it"):
        refuse(passes, seconds, exact=True)
    with pytest.raises(InputError) as error:
        refuse(passes, seconds, exact=False)
    assert "sketch" not in str(error.value)


def test_a_dry_run_enqueues_nothing(tmp_path: Path, redis_url: str, redis: Redis) -> None:
    fleet = Fleet(tmp_path, redis_url, tmp_path / "cache")
    said = fleet.enqueue(4, "--dry-run")
    assert "cost: 4 tasks, about 12 forward passes\ndisk: at most " in said
    assert "\nrelay: at most " in said
    assert "\ntime: not known yet; 12 seconds of work for each second that a forward pass takes" in said
    assert said.endswith("nothing was enqueued\n")
    assert not redis.keys("rq:job:*")
    assert not list(fleet.calib.glob("*.json"))
    assert "cost: 4 tasks" in fleet.enqueue(4)
    assert len(list(redis.keys("rq:job:*"))) == 4
    assert "cost" not in fleet.enqueue(4, "--quiet")


def test_passes_that_connected_workers_have_timed_tell_the_time(
    tmp_path: Path, redis_url: str, redis: Redis
) -> None:
    fleet = Fleet(tmp_path, redis_url, tmp_path / "cache")
    spec = model_spec("tiny-sd3")
    flops = cost_of("calibration", spec, TaskSize.of(SETTINGS, spec)).forward_flops
    for name, seconds in (("air-1", 10), ("studio-1", 5), ("mini-1", None)):
        # The mini has loaded no model yet.
        tally = Tally(flops_per_second=flops / seconds) if seconds else Tally()
        fields: dict[str, str | bytes] = {"last_heartbeat": "now", HOST_FIELD: name[:-2]}
        redis.hset(f"rq:worker:{name}", mapping=fields | {TALLY_FIELD: encode_tally(tally)})
        redis.sadd(WORKERS_BY_QUEUE_KEY % queue_name("relay"), f"rq:worker:{name}")
    # 12 passes; a tenth, a fifth, and their mean a second.
    said = fleet.enqueue(4, "--dry-run")
    assert "\ntime: about 26.67 seconds by earlier tasks or timed passes, on the 3 workers" in said


def test_too_much_is_refused_unless_one_says_yes(
    tmp_path: Path, redis_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.cost.MAX_PASSES", 11)
    fleet = Fleet(tmp_path, redis_url, tmp_path / "cache")
    said = fleet.producer(
        "enqueue-calibration", "--model", "tiny-sd3", "--num-images", "4", "--num-steps", "3",
        "--prompt-csv", "prompts.csv", code=2,
    )  # fmt: skip
    assert said == "Error: this takes about 12 forward passes: ask for less; give --yes if you mean it\n"
    assert not redis.keys("rq:job:*")
    assert "4 images enqueued" in fleet.enqueue(4, "--yes")


def test_a_whole_run_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, None, tmp_path / "cache")
    said = fleet.producer(
        "run", "--model", "tiny-sd3", "--num-images", "4", "--prompt-csv", "prompts.csv",
        "--num-steps", "1000", "--step-stride", "1", code=2,
    )  # fmt: skip
    assert "--method sketch" in said
    assert not fleet.calib.exists()
