"""Queue hygiene: what strangers put into Redis is refused with a reason, and harms nothing."""

import inspect
import json
import os
import pickle
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from rq.job import Job

from shared import __version__
from shared.errors import TaskRefusedError
from shared.jobs.task_job import (
    FAILURE_TTL,
    JOB_TIMEOUT,
    MAX_DATA_BYTES,
    RESULT_TTL,
    TaskJob,
)
from shared.jobs.task_queue import TaskQueue
from shared.kinds.registry import encode_task
from tests.job_fleet import KEY, QUEUE, Fleet
from tests.tasks import image_task


@pytest.fixture
def fleet(redis: Redis, redis_url: str) -> Fleet:
    return Fleet(redis, redis_url)


def call(name: str, *args: Any, **kwargs: Any) -> bytes:
    return zlib.compress(json.dumps([name, None, args, kwargs]).encode())


GOOD = image_task(7)
GOOD_DATA = call("calibration", encode_task(GOOD))


def test_a_job_is_written_as_rq_writes_it(fleet: Fleet) -> None:
    """Our own way is for thousands at once. RQ's own must be able to read it, and whoever looks at Redis."""
    queue, redis = fleet.queue, fleet.redis
    assert queue.enqueue_tasks([GOOD, image_task(8)]) == 2
    ours = redis.hgetall(f"rq:job:{GOOD.id}")
    redis.delete(f"rq:job:{GOOD.id}")
    options = {"timeout": JOB_TIMEOUT, "result_ttl": RESULT_TTL, "failure_ttl": FAILURE_TTL}
    call = ["calibration", [encode_task(GOOD), __version__]]
    theirs = queue.prepare_data(call[0], args=call[1], job_id=GOOD.id, description=GOOD.label, **options)
    queue.enqueue_many([theirs])
    expected = redis.hgetall(f"rq:job:{GOOD.id}")
    assert zlib.decompress(ours.pop(b"data")) == zlib.decompress(expected.pop(b"data"))
    for time in (b"created_at", b"enqueued_at"):
        assert len(ours.pop(time)) == len(expected.pop(time))
    assert ours == expected
    assert queue.in_flight().ready == (GOOD.id, image_task(8).id, GOOD.id)
    assert queue.task_of(image_task(8).id) == image_task(8)
    assert redis.smembers("rq:queues") == {queue.key.encode()}


class TestRefusal:
    @pytest.fixture
    def canary(self, tmp_path: Path) -> Path:
        return tmp_path / "canary"

    @pytest.fixture
    def refused(self, fleet: Fleet, canary: Path) -> Callable[..., str]:
        """Inject a job, then a good one: the first is refused, the second is run; return the reason."""

        def act(job_id: str, fields: dict[str, Any]) -> str:
            fleet.inject(job_id, fields)
            fleet.queue.enqueue_tasks([image_task(1)])
            fleet.work()
            assert fleet.ran == [image_task(1).id]
            assert not canary.exists()
            assert fleet.queue.in_flight().ids == frozenset()
            return fleet.failure(job_id)

        return act

    @pytest.mark.parametrize("name", ["os.system", "subprocess.run", "shared.files.write_atomically"])
    def test_a_function_by_its_dotted_name(
        self, refused: Callable[..., str], canary: Path, name: str
    ) -> None:
        assert name in refused("evil", {"data": call(name, f"touch {canary}")})

    def test_a_method_of_an_instance(self, refused: Callable[..., str], canary: Path) -> None:
        data = zlib.compress(json.dumps(["system", "os", [f"touch {canary}"], {}]).encode())
        assert "system" in refused("evil", {"data": data})

    @pytest.mark.parametrize("retries", [b"3", b"1000000"])
    def test_pickled_data(self, refused: Callable[..., str], canary: Path, retries: bytes) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return os.system, (f"touch {canary}",)

        data = pickle.dumps(("calibration", None, (Evil(),), {}))
        assert "no JSON" in refused("evil", {"data": zlib.compress(data), "retries_left": retries})

    @pytest.mark.parametrize(
        "field", ["success_callback_name", "failure_callback_name", "stopped_callback_name"]
    )
    def test_callbacks(
        self, refused: Callable[..., str], canary: Path, field: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CANARY", str(canary))
        fields = {"data": GOOD_DATA, field: "tests.test_jobs.touch_canary"}
        assert field in refused(GOOD.id, fields)

    def test_webhooks(self, refused: Callable[..., str]) -> None:
        hook = json.dumps([{"url": "http://localhost:1/", "job_status": "failed"}])
        assert "webhooks" in refused(GOOD.id, {"data": GOOD_DATA, "webhooks": hook})

    def test_a_task_under_another_id(self, refused: Callable[..., str]) -> None:
        assert GOOD.id in refused("cal-other-00000", {"data": GOOD_DATA})

    def test_a_task_under_another_function(self, refused: Callable[..., str]) -> None:
        assert "refused" in refused(GOOD.id, {"data": call("sensitivity", encode_task(GOOD))})

    def test_a_zlib_bomb(self, refused: Callable[..., str]) -> None:
        bomb = zlib.compress(b" " * (64 * 1024**2) + b"[]")
        assert f"more than {MAX_DATA_BYTES} bytes" in refused("evil", {"data": bomb})

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x00",
            b"{}",
            b"[]",
            b"null",
            b"[" * 100_000,
            b'["calibration", null, [], {}]',
            b'["calibration", null, ["{}", "{}"], {}]',
            b'["calibration", null, [{}], {}]',
            b'["calibration", null, ["{}"], {"x": 1}]',
            b'["calibration", null, "{}", {}]',
            b'["calibration", null, ["\\ud800"], {}]',
            b'[["calibration"], null, ["{}"], {}]',
            b"[null, null, null, null]",
            GOOD_DATA[:-1],
            GOOD_DATA[:-9],
            call("calibration", "not a task"),
            call("calibration", encode_task(GOOD).replace('"seed":7', '"seed":-1')),
            call("calibration", encode_task(GOOD).replace('"relay"', '"../../x"')),
            call("calibration", encode_task(GOOD).replace('"prompt"', '"more":1,"prompt"')),
        ],
        ids=lambda data: repr(data[:30]),
    )
    def test_data_that_is_no_call(self, refused: Callable[..., str], data: bytes) -> None:
        assert refused(GOOD.id, {"data": data})

    def test_no_data_at_all(self, refused: Callable[..., str]) -> None:
        assert refused(GOOD.id, {})

    @pytest.mark.parametrize(
        "fields",
        [
            {"status": "no status"},
            {"timeout": "soon"},
            {"created_at": "yesterday"},
            {"started_at": b"\xff"},
            {"description": b"\xff\xfe"},
            {"worker_name": b"\xff"},
        ],
        ids=str,
    )
    def test_fields_that_can_not_be_read(self, refused: Callable[..., str], fields: dict[str, Any]) -> None:
        assert "can't be read" in refused(GOOD.id, {"data": GOOD_DATA} | fields)


class TestHarmlessOddities:
    """Fields that mean something to RQ and nothing to us: the task is good, so it is run."""

    @pytest.mark.parametrize(
        "fields",
        [
            {"timeout": -1},
            {"timeout": 10**9},
            {"result_ttl": 0},
            {"result_ttl": "x"},
            {"result_ttl": -1},
            {"result_ttl": 10**30},
            {"failure_ttl": 10**30},
            {"failure_ttl": 0},
            {"ttl": 1},
            {"repeats_left": 10**6, "repeat_intervals": "[0]"},
            {"retries_left": 10**9},
            {"retries_left": "many"},
            {"enqueue_at_front_on_retry": "yes"},
            {"retry_intervals": "[100]", "retries_left": 3},
            {"dependency_ids": '["other"]'},
            {"dependency_id": b"\xff"},
            {"allow_dependency_failures": "x"},
            {"group_id": "group"},
            {"meta": b"\x80\x04"},
            {"rate_limit_key": "key", "rate_limit_concurrency": 1},
            {"exc_info": b"x", "result": b"\x80"},
            {"number_of_retries": "x"},
            {"origin": "another-queue"},
            {"description": "\x1b[2J" + "x" * 100_000},
            {b"\xff\xfe": b"\xff"},
        ],
        ids=lambda fields: ascii(fields)[:40],
    )
    def test_the_task_is_run_once_and_its_result_kept(
        self, fleet: Fleet, redis: Redis, fields: dict[Any, Any]
    ) -> None:
        fleet.inject(GOOD.id, {"data": GOOD_DATA} | fields)
        fleet.work()
        assert fleet.ran == [GOOD.id]
        assert fleet.queue.finished_job_registry.get_job_ids(cleanup=False) == [GOOD.id]
        assert RESULT_TTL - 60 < redis.ttl(TaskJob.key_for(GOOD.id)) <= RESULT_TTL
        assert fleet.queue.in_flight().ids == frozenset()

    def test_dependents_are_not_set_free(self, fleet: Fleet, redis: Redis) -> None:
        fleet.inject(GOOD.id, {"data": GOOD_DATA})
        redis.sadd(f"rq:job:{GOOD.id}:dependents", "evil", "not an id!")
        redis.hset("rq:job:evil", mapping={"data": GOOD_DATA, "origin": "other", "status": "deferred"})
        fleet.work()
        assert fleet.ran == [GOOD.id]
        assert fleet.queue.failed_ids() == set()
        assert redis.keys("rq:queue:other*") == []

    def test_an_over_long_life_is_cut_short(self, fleet: Fleet) -> None:
        fleet.inject(GOOD.id, {"data": GOOD_DATA, "timeout": 10**9, "retries_left": 10**9})
        job = TaskJob.fetch(GOOD.id, connection=fleet.redis, serializer=fleet.queue.serializer)
        assert job.timeout == JOB_TIMEOUT
        assert job.retries_left is None

    def test_what_is_logged_is_one_short_printable_line(self, fleet: Fleet) -> None:
        fleet.inject(
            GOOD.id, {"data": GOOD_DATA, "description": "\x1b[2Ja\nb" + "x" * 10**5, "worker_name": "\x07"}
        )
        job = TaskJob.fetch(GOOD.id, connection=fleet.redis, serializer=fleet.queue.serializer)
        for text in (job.description, job.worker_name):
            assert text is None or (text.isprintable() and len(text) <= 300)


class TestQueueEntries:
    """Ids in the lists themselves."""

    @pytest.mark.parametrize(
        "entry", [b"not an id!", b"", b"a:b", b"\xff\xfe", b"../x", b"x" * 100_000, b"gone"], ids=repr
    )
    def test_an_id_that_is_none_of_ours(self, fleet: Fleet, redis: Redis, entry: bytes) -> None:
        redis.hset(b"rq:job:not an id!", mapping={"data": GOOD_DATA})
        redis.rpush(KEY, entry)
        fleet.queue.enqueue_tasks([GOOD])
        fleet.work()
        assert fleet.ran == [GOOD.id]
        # Nothing stays behind that would look like a job on its way for ever.
        assert fleet.queue.in_flight().ids == frozenset()

    def test_a_job_that_is_no_hash(self, fleet: Fleet, redis: Redis) -> None:
        redis.set("rq:job:text", "text")
        redis.rpush(KEY, "text")
        fleet.queue.enqueue_tasks([GOOD])
        fleet.work()
        assert fleet.ran == [GOOD.id]

    @pytest.mark.parametrize("entry", ["no colon", "not an id!:x", ":", "gone:x", b"\xff:\xff"], ids=repr)
    def test_a_lease_that_is_none_of_ours(self, fleet: Fleet, redis: Redis, entry: Any) -> None:
        redis.zadd(f"rq:wip:{QUEUE}", {entry: 1})
        fleet.queue.enqueue_tasks([GOOD])
        fleet.work()
        assert fleet.ran == [GOOD.id]
        assert fleet.queue.in_flight().ids == frozenset()

    def test_a_crashed_job_with_callbacks_is_returned_without_them(
        self, fleet: Fleet, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """RQ would call the failure callback in whichever process finds the expired lease."""
        monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
        fields = {
            "data": GOOD_DATA,
            "status": "started",
            "failure_callback_name": "tests.test_jobs.touch_canary",
        }
        redis.hset(f"rq:job:{GOOD.id}", mapping=fields)
        redis.zadd(f"rq:wip:{QUEUE}", {f"{GOOD.id}:x": 1})
        fleet.work()
        assert not (tmp_path / "canary").exists()
        assert fleet.queue.in_flight().ids == frozenset()


def touch_canary(*args: Any) -> None:
    Path(os.environ["CANARY"]).touch()


# All that RQ reads of a job's hash.
FIELD_NAMES = st.sampled_from(
    sorted(set(re.findall(r"obj(?:\.get\(|\[)'(\w+)'", inspect.getsource(Job.restore))))
)
FIELD_VALUES = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.integers().map(lambda number: str(number).encode()),
    st.sampled_from(
        [b"", b"os.system", b"queued", b"started", b"[0]", b"null", b"{}", b"inf", b"nan", b"1.5"]
    ),
    st.sampled_from([GOOD_DATA, call("os.getpid")]),
)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(fields=st.dictionaries(FIELD_NAMES, FIELD_VALUES, max_size=8), good=st.booleans())
def test_whatever_a_hash_holds_the_worker_goes_on(fleet: Fleet, fields: dict[str, bytes], good: bool) -> None:
    """The job is run as the task that it validly holds, or refused; the next one is run in any case."""
    fleet.redis.flushall()
    fleet.ran.clear()
    if good:
        fields["data"] = GOOD_DATA
    fleet.redis.hset(f"rq:job:{GOOD.id}", mapping=fields or {"x": "y"})
    fleet.redis.rpush(KEY, GOOD.id)
    fleet.queue.enqueue_tasks([image_task(1)])
    fleet.work()
    assert fleet.ran in ([image_task(1).id], [GOOD.id, image_task(1).id])
    assert fleet.queue.in_flight().ids == frozenset()
    done = set(fleet.queue.finished_job_registry.get_job_ids(cleanup=False))
    assert done | fleet.queue.failed_ids() == {GOOD.id, image_task(1).id}


@given(fields=st.dictionaries(FIELD_NAMES, FIELD_VALUES, max_size=12))
def test_reading_any_hash_yields_a_task_or_a_refusal(fields: dict[str, bytes]) -> None:
    job = TaskJob(GOOD.id, connection=Redis(), serializer=TaskQueue(QUEUE, Redis()).serializer)
    job.restore({name.encode(): value for name, value in fields.items()})
    assert job.success_callback is job.failure_callback is job.stopped_callback is None
    assert job.webhooks == []
    try:
        assert job.task == GOOD
    except TaskRefusedError as error:
        assert GOOD.id in str(error)
        assert len(str(error)) < 2000


def test_a_plain_rq_job_would_have_run_it(redis: Redis) -> None:
    """What the refusals above protect from: RQ's own class runs any importable name."""
    redis.hset("rq:job:evil", mapping={"data": call("os.getpid"), "origin": QUEUE})
    serializer = TaskQueue(QUEUE, redis).serializer
    assert Job.fetch("evil", connection=redis, serializer=serializer).perform() == os.getpid()
