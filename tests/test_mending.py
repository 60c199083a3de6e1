"""Keys of Redis that hold something else than they should: workers reset them, say so, and go on."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from shared.jobs import mending as mending_module
from shared.jobs.connection import connect
from shared.jobs.history import read_events, read_progress
from shared.jobs.mending import FAMILIES, reset_misfits, type_of
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.jobs.workers import able_places, live_workers
from tests.chaos import FULL, Chaos
from tests.tasks import SETTINGS
from worker.jobs.maintenance import tidy

ROOT = Path(__file__).parent.parent
QUEUE = queue_name("relay")
MAKE: dict[str, Callable[[Redis, str], object]] = {
    "string": lambda redis, key: redis.set(key, b"\x1b[2J not ours"),
    "hash": lambda redis, key: redis.hset(key, "a", b"not ours"),
    "list": lambda redis, key: redis.rpush(key, b"not ours"),
    "set": lambda redis, key: redis.sadd(key, b"not ours"),
    "zset": lambda redis, key: redis.zadd(key, {"not ours": 1}),
    "stream": lambda redis, key: redis.xadd(key, {"a": "not ours"}),
}


def spoil(redis: Redis, key: str, kind: str) -> None:
    # One step: a worker may write the key in between.
    with redis.pipeline() as step:
        step.delete(key)
        MAKE[kind](step, key)
        step.execute()


@pytest.fixture
def mending(redis_url: str) -> Iterator[Redis]:
    with connect(redis_url) as client:
        yield client


def test_every_key_in_the_source_has_its_type() -> None:
    paths = [path for part in ("shared", "producer", "worker") for path in (ROOT / part).rglob("*.py")]
    sources = [path.read_text() for path in paths if path.name != "mending.py"]
    names = {name for source in sources for name in re.findall(r"\"(bitfleet:[^\"{]+)", source)}
    assert len(names) > 8
    # A doctor's key has no type of its own: it tries several.
    for name in names - {"bitfleet:doctor:"}:
        key = f"{name}x" if name.endswith(":") else name
        assert type_of(key), f"{key} is missing in shared/jobs/mending.py"


@pytest.mark.parametrize("kind", MAKE)
def test_a_command_and_a_pipeline_find_the_key_as_it_should_be(
    redis: Redis, mending: Redis, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = f"bitfleet:history:{kind}"
    for transaction in (True, False):
        spoil(redis, key, kind)
        with mending.pipeline(transaction=transaction) as pipeline:
            pipeline.incr("counter")
            pipeline.rpush(key, b"ours")
            pipeline.llen(key)
            assert pipeline.execute()[1:] == ([2, 2] if kind == "list" else [1, 1])
    spoil(redis, key, kind)
    assert mending.rpush(key, b"ours") == (2 if kind == "list" else 1)
    assert redis.get("counter") == b"2", "nothing is done twice"
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (0 if kind == "list" else 3)
    assert all(f"{key} in Redis was no list" in line for line in said)


def test_what_is_not_ours_is_left_alone(redis: Redis, mending: Redis) -> None:
    for key in ("others", "bitfleetx:history:x", "rq:job:a:dependents"):
        redis.set(key, b"theirs")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            mending.rpush(key, b"ours")
        assert redis.get(key) == b"theirs"


def test_a_script_and_an_error_of_another_kind(redis: Redis, mending: Redis) -> None:
    redis.set("bitfleet:records:x", b"theirs")
    script = mending.register_script("return redis.call('HLEN', KEYS[1])")
    assert script(keys=["bitfleet:records:x"]) == 0
    with pytest.raises(ResponseError, match="not an integer"):
        mending.set("bitfleet:relay:limit", "x")
        mending.incr("bitfleet:relay:limit")


def test_keys_that_are_spoilt_while_a_command_is_sent_again(
    redis: Redis, mending: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"bitfleet:history:{place}" for place in range(4)]
    script = mending.register_script(
        "for _, key in ipairs(KEYS) do redis.call('LLEN', key) end return 'done'"
    )
    redis.set(keys[0], b"theirs")
    later = iter(keys[1:])

    def spoil_another(key: str) -> None:
        redis.set(next(later, "others"), b"theirs")

    monkeypatch.setattr(mending_module, "say_reset", spoil_another)
    assert script(keys=keys) == b"done"


def test_a_key_that_another_client_reset_first(
    redis: Redis, mending: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(_: Redis, keys: list[str]) -> list[str]:
        redis.delete(*keys)
        return []

    monkeypatch.setattr(mending_module, "reset_misfits", too_late)
    redis.set("bitfleet:history:x", b"theirs")
    assert mending.rpush("bitfleet:history:x", b"ours") == 1


def test_keys_that_fit_are_not_touched(redis: Redis) -> None:
    redis.rpush("bitfleet:history:x", b"a")
    assert reset_misfits(redis, ["bitfleet:history:x", "bitfleet:history:none", "others"]) == []
    assert redis.llen("bitfleet:history:x") == 1


def test_json_that_is_nested_too_deeply_is_no_entry(redis: Redis) -> None:
    deep = b'{"outcome":"failed","x":' + b"[" * 100_000
    redis.rpush("bitfleet:history:x", deep)
    redis.hset(f"bitfleet:progress:{QUEUE}", "x", deep)
    assert read_events(redis, "x") == []
    assert read_progress(redis, QUEUE) == {}


def test_a_list_of_workers_with_something_else_in_it(redis: Redis) -> None:
    redis.sadd(f"rq:workers:{QUEUE}", b"\xff", "x", "rq:worker:a b", "rq:worker:gone")
    assert able_places(TaskQueue(QUEUE, redis), "cal-0-") == set()
    assert live_workers(TaskQueue(QUEUE, redis)) == []
    tidy(redis, QUEUE)
    assert redis.smembers(f"rq:workers:{QUEUE}") == set()


def keys_of(chaos: Chaos) -> dict[str, str]:
    """One key of each family that there is while workers work, by its pattern."""
    running = [lease.partition(b":")[0].decode() for lease in chaos.leases()]
    names = [key.decode("utf-8", "replace") for key in chaos.redis.keys("*")]
    # Of a job that runs, where there is one.
    names.sort(key=lambda name: any(job_id in name for job_id in running))
    fixed = [f"bitfleet:{name}:{QUEUE}" for name in ("aside", "grace", "looked", "progress", "reconcile")]
    fixed += [f"bitfleet:canary:{SETTINGS.id}", f"bitfleet:records:{SETTINGS.id}", "bitfleet:relay:used"]
    fixed += [f"rq:failed:{QUEUE}", f"rq:finished:{QUEUE}", f"rq:wip:{QUEUE}", f"rq:queue:{QUEUE}"]
    return {pattern: name for name in [*fixed, *names] for pattern in FAMILIES if re.fullmatch(pattern, name)}


@pytest.mark.slow
def test_no_wrong_type_of_any_key_ends_a_worker(redis_url: str, tmp_path: Path) -> None:
    """Real worker processes, and a collector; every key becomes each type in turn (in `make test`: three)."""
    chaos = Chaos(redis_url, tmp_path)
    try:
        workers = [chaos.start(), chaos.start()]
        for kind in MAKE if FULL else chaos.chance.sample(list(MAKE), 3):
            chaos.enqueue(4, "0.05")
            chaos.wait_until_busy()
            for key in keys_of(chaos).values():
                spoil(chaos.redis, key, kind)
            chaos.collect_all()
            assert [worker.poll() for worker in workers] == [None, None], chaos.logs()
        assert "Traceback" not in chaos.logs()
        assert "is reset" in chaos.logs()
        assert "\x1b" not in chaos.logs()
    finally:
        chaos.close()
