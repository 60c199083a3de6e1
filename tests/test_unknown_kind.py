"""A task of a kind that only a newer revision knows: it waits for a machine that has that revision."""

import pytest
from redis import Redis
from rq.job import JobStatus

from shared.jobs.history import read_events
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue
from tests.job_fleet import QUEUE, Fleet
from tests.tasks import image_task

NEWER = "rou-0123456789ab-00000"


@pytest.fixture
def fleet(redis: Redis, redis_url: str) -> Fleet:
    return Fleet(redis, redis_url)


def enqueue_newer(queue: TaskQueue) -> None:
    task = f'{{"type": "rounding", "id": "{NEWER}"}}'
    data = queue.prepare_data(
        "rounding", args=[task, "9.9.0"], job_id=NEWER, description="rounding of image 0", timeout=60
    )
    queue.enqueue_many([data])


def test_it_is_handed_back_and_set_aside_with_the_revision_that_it_needs(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    enqueue_newer(fleet.queue)
    known = image_task(0)
    fleet.queue.enqueue_tasks([known])
    worker = fleet.work()
    assert fleet.ran == [known.id]
    (reason,) = worker.set_aside.reasons()
    assert reason == "this revision knows no tasks of kind 'rounding'; it needs bitfleet 9.9.0"
    assert f"can't do the jobs of {NEWER.split('-')[1]}" in caplog.text
    # It lost no attempt, and waits.
    job = TaskJob.fetch(NEWER, connection=fleet.redis, serializer=fleet.queue.serializer)
    assert job.get_status() == JobStatus.QUEUED
    assert fleet.queue.in_flight().queued == (NEWER,)
    assert [event.outcome for event in read_events(fleet.redis, NEWER)] == ["started", "handed back"]
    assert fleet.queue.name == QUEUE
