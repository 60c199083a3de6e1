"""The beat of a job, with a clock that the test moves: no thread, no waiting."""

from collections.abc import Callable

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq.executions import Execution

from shared.jobs.history import Progress, read_progress
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue, queue_name
from tests.tasks import image_task
from worker.jobs.job_context import JobContext
from worker.jobs.lease import EXIT_TIMEOUT, TIMEOUT_GRACE_SECONDS, Beat, BeatThread

QUEUE = queue_name("relay")
TASK = image_task(0)
BEAT = 10.0


class Job:
    """One job in work, its lease, and its beat; `now` is the beat's clock."""

    def __init__(self, redis: Redis) -> None:
        self.redis, self.now = redis, 1000.0
        self.beats: list[float] = []
        self.after_beat: Callable[[], None] = lambda: None
        self.queue = TaskQueue(QUEUE, redis)
        self.queue.enqueue_tasks([TASK])
        job = TaskJob.fetch(TASK.id, connection=redis, serializer=self.queue.serializer)
        with redis.pipeline() as pipeline:
            self.execution = Execution.create(job, 45, pipeline)
            pipeline.execute()
        self.context = JobContext(confirm=lambda: None)
        self.timeout = job.timeout
        self.beat = Beat(
            thread=BeatThread(),
            connection=redis,
            job=job,
            execution=self.execution,
            context=self.context,
            lease_seconds=45,
            beat_seconds=BEAT,
            sender=lambda text: Progress(text=text, host="here", worker="w"),
            each_beat=self._each_beat,
            clock=lambda: self.now,
        )

    def _each_beat(self, redis: Redis) -> None:
        self.beats.append(self.now)
        self.after_beat()

    def look_after(self, seconds: float) -> None:
        self.now += seconds
        self.beat.look()


@pytest.fixture
def job(redis: Redis) -> Job:
    return Job(redis)


def test_the_lease_is_renewed_once_a_beat(job: Job) -> None:
    leases, entry = job.queue.started_job_registry.key, job.execution.composite_key
    renewed = []
    for _ in range(21):
        job.redis.zadd(leases, {entry: 1}, xx=True)
        job.look_after(1)
        if job.redis.zscore(leases, entry) > 1:
            renewed.append(job.now)
    assert renewed == job.beats == [1001, 1011, 1021]


def test_a_lease_that_is_gone_is_not_made_again(job: Job) -> None:
    job.look_after(0)
    assert not job.context.lost
    job.redis.delete(job.queue.started_job_registry.key)
    job.look_after(BEAT)
    assert job.context.lost
    assert not job.redis.exists(job.queue.started_job_registry.key)


@pytest.mark.parametrize("error", [RedisConnectionError("away"), OSError("no route")])
def test_a_beat_that_found_no_redis_is_made_up_for_at_the_next_look(job: Job, error: Exception) -> None:
    def fail() -> None:
        job.after_beat = lambda: None
        raise error

    job.after_beat = fail
    job.look_after(0)
    job.look_after(1)
    job.look_after(1)
    assert job.beats == [1000, 1001]


def test_progress_is_published_when_it_changes(job: Job) -> None:
    job.look_after(0)
    assert read_progress(job.redis, QUEUE) == {}
    assert not job.beat.published
    job.context.progress = "step 1 of 2"
    job.look_after(1)
    assert read_progress(job.redis, QUEUE)[TASK.id].text == "step 1 of 2"
    assert job.beat.published


def test_a_computation_over_its_time_limit_ends_the_process(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits: list[int] = []
    monkeypatch.setattr("os._exit", exits.append)
    assert job.timeout
    job.look_after(job.timeout + TIMEOUT_GRACE_SECONDS)
    assert exits == []
    job.look_after(0.25)
    assert exits == [EXIT_TIMEOUT]
