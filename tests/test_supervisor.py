"""The supervisor: starts workers again, and tells of a dead one's job how it died."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from shared.jobs.history import Event, add_crash, add_event, read_events
from shared.jobs.task_queue import TaskQueue, queue_name
from tests.chaos import Chaos
from tests.tasks import image_task, wait_until
from worker.jobs.lease import EXIT_TIMEOUT
from worker.jobs.post_mortem import cause_of_death, report_death
from worker.service.supervisor import with_openblas

QUEUE = queue_name("relay")
TASK = image_task(0)


@pytest.mark.parametrize(
    ("code", "words"),
    [(-9, "signal SIGKILL"), (-63, "signal -"), (1, "exit code 1"), (EXIT_TIMEOUT, "over its time limit")],
)
def test_cause_of_death(code: int, words: str) -> None:
    assert words.rstrip("-") in cause_of_death(code)


class TestReport:
    @pytest.fixture
    def queue(self, redis: Redis) -> TaskQueue:
        """A job that a worker named `dead` runs, as it said itself."""
        queue = TaskQueue(QUEUE, redis)
        entry = f"{TASK.id}:x"
        redis.sadd("rq:worker:dead:executions", entry)
        redis.zadd(queue.started_job_registry.key, {entry: 2**33})
        add_event(redis, TASK.id, Event(outcome="started", host="studio", worker="dead"))
        return queue

    def test_is_in_the_history_and_ends_the_lease(
        self, queue: TaskQueue, redis: Redis, redis_url: str
    ) -> None:
        report_death(redis_url, QUEUE, "dead", -signal.SIGSEGV)
        event = read_events(redis, TASK.id)[-1]
        assert (event.outcome, event.host, event.worker) == ("crashed", "studio", "dead")
        assert event.detail == "signal SIGSEGV"
        assert redis.zscore(queue.started_job_registry.key, f"{TASK.id}:x") == 0
        # Whoever returns the job knows less of it.
        assert add_crash(redis, TASK.id, "dead", "gave no sign of life") == "signal SIGSEGV"
        assert len(read_events(redis, TASK.id)) == 2

    def test_is_not_given_for_a_job_that_others_have(
        self, queue: TaskQueue, redis: Redis, redis_url: str
    ) -> None:
        redis.delete(queue.started_job_registry.key)
        report_death(redis_url, QUEUE, "dead", -9)
        assert [event.outcome for event in read_events(redis, TASK.id)] == ["started"]
        assert not redis.exists(queue.started_job_registry.key)

    def test_of_garbage(self, queue: TaskQueue, redis: Redis, redis_url: str) -> None:
        redis.sadd("rq:worker:dead:executions", b"\xff:\xff", "", "a b:c")
        report_death(redis_url, QUEUE, "dead", -9)
        assert redis.zcard(queue.started_job_registry.key) == 1

    def test_without_a_redis(self, tmp_path: Path) -> None:
        report_death(f"unix://{tmp_path}/none", QUEUE, "dead", -9)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_openblas_is_preloaded_unless_something_is() -> None:
    assert with_openblas({"LD_PRELOAD": "mine"})["LD_PRELOAD"] == "mine"
    library = with_openblas({}).get("LD_PRELOAD")
    assert library is None or Path(library).is_file()


@pytest.mark.slow
class TestProcesses:
    @pytest.fixture
    def chaos(self, redis_url: str, tmp_path: Path) -> Iterator[Chaos]:
        chaos = Chaos(redis_url, tmp_path)
        yield chaos
        chaos.close()

    def test_a_dead_workers_job_is_done_again_before_its_lease_is_over(self, chaos: Chaos) -> None:
        """The lease is a minute here, and the test gives up before one is over."""
        chaos.enqueue(1, "1")
        supervisor = chaos.start("supervise", "1", lease=60)
        (job_id,) = (task.id for task in chaos.tasks)
        wait_until(lambda: read_events(chaos.redis, job_id))
        worker = next(event.worker for event in read_events(chaos.redis, job_id))
        wait_until(lambda: chaos.redis.hget(f"rq:worker:{worker}", "pid"))
        victim = int(chaos.redis.hget(f"rq:worker:{worker}", "pid"))
        chaos.redis.delete(f"bitfleet:watched:{QUEUE}:pause")
        os.kill(victim, signal.SIGKILL)
        # Half a lease may pass while leases that nobody could renew are left alone.
        chaos.collect_all(seconds=50)
        assert "signal SIGKILL" in chaos.logs()
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(20) == 0

    def test_no_redis_is_no_reason_to_leave_for_good(self, chaos: Chaos) -> None:
        chaos.enqueue(1, "0")
        supervisor = chaos.start("supervise", "1", url="unix:///nonexistent/redis.sock")
        wait_until(lambda: chaos.logs().count("out of reach") >= 2)
        assert supervisor.poll() is None
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(20) == 0
