"""`rq worker` started by mistake on our queue: what it takes comes back, and status names it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from producer.jobs.unserved import strangers, unserved
from shared.jobs.asides import kind_of_job
from shared.jobs.history import Event, add_event
from shared.jobs.task_queue import given_up_key
from shared.jobs.workers import live_workers
from tests.lease_fleet import QUEUE, ROOT, Fleet
from tests.tasks import image_task, wait_until
from worker.jobs.maintenance import return_lost_jobs, tidy
from worker.jobs.set_aside import SetAside

TASKS = [image_task(index, prompt="ok") for index in range(4)]


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(redis_url, tmp_path)
    yield fleet
    fleet.close()


@pytest.mark.slow
def test_jobs_that_rqs_own_worker_took_are_done_without_costing_an_attempt(fleet: Fleet) -> None:
    fleet.queue.enqueue_tasks(TASKS)
    command = [sys.executable, "-m", "rq.cli", "worker", "--url", fleet.url, "--quiet", QUEUE]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as stranger:
        wait_until(lambda: fleet.queue.failed_ids() == {task.id for task in TASKS})
        (line,) = strangers(live_workers(fleet.queue))
        stranger.kill()
    assert "is RQ's own worker and can't do these tasks" in line
    fleet.start("ours")
    wait_until(lambda: all(fleet.is_done(task) for task in TASKS))
    assert fleet.queue.failed_ids() == set()
    assert "4 jobs are back" in fleet.log("ours")
    assert sorted(fleet.ran())[0] == f"ours ends {TASKS[0].id}"


def test_a_job_that_it_took_and_did_not_begin_comes_back(fleet: Fleet) -> None:
    fleet.queue.enqueue_tasks(TASKS)
    fleet.redis.lmove(fleet.queue.key, fleet.queue.intermediate_queue_key, "LEFT", "LEFT")
    tidy(fleet.redis, QUEUE)
    assert fleet.queue.in_flight().ready == tuple(task.id for task in TASKS)


def test_what_our_workers_gave_up_stays_so(fleet: Fleet) -> None:
    for _ in range(4):
        add_event(fleet.redis, TASKS[0].id, Event(outcome="failed", host="h", worker="w"))
    fleet.start_by_hand(TASKS[0], "x", until=1)
    return_lost_jobs(fleet.redis, QUEUE)
    tidy(fleet.redis, QUEUE)
    assert fleet.queue.failed_ids() == {TASKS[0].id}
    # Enqueued again, it has another life.
    fleet.queue.enqueue_tasks(TASKS[:1])
    assert fleet.redis.zcard(given_up_key(QUEUE)) == 0
    assert fleet.queue.in_flight().ready == (TASKS[0].id,)


def test_status_says_which_tasks_no_connected_worker_can_serve_and_why(fleet: Fleet) -> None:
    fleet.queue.enqueue_tasks(TASKS)
    for name, host in (("one", "air"), ("two", "studio")):
        fields = {"last_heartbeat": "x", "bitfleet_host": host, "bitfleet_start": name}
        fleet.redis.hset(f"rq:worker:{name}", mapping=fields)
        fleet.redis.sadd(f"rq:workers:{QUEUE}", f"rq:worker:{name}")

    def said() -> list[str]:
        return list(unserved(fleet.redis, "relay", live_workers(fleet.queue)))

    SetAside(fleet.redis, QUEUE, host="air", start_id="one").add(TASKS[0].id, "the files are missing")
    assert said() == []
    SetAside(fleet.redis, QUEUE, host="studio", start_id="two").add(TASKS[0].id, "it needs 19 GB")
    group = kind_of_job(TASKS[0].id).split("-")[1]
    assert said() == [
        f"4 images of {group} wait, and no connected worker can serve them: air: the files are missing; "
        "studio: it needs 19 GB"
    ]
    # A `worker start` of the same machine with other files.
    fleet.redis.hset("rq:worker:two", "bitfleet_start", "three")
    assert said() == []
