"""Job turnaround: this project's worker against RQ's stock SimpleWorker, on jobs that do nothing.

    python -m benchmarks.jobs [--jobs 300 --rounds 7]

Also: how long it takes to choose a job while two runs of 20,000 wait in one queue.

Both run a burst of jobs from a Redis of their own, one after the other in turns; of the rounds, the
median counts. A stock worker sends no heartbeat during a job and checks nothing before it writes an
outcome.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from redis import Redis
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer

from benchmarks.report import Report, print_report
from benchmarks.settings import run_settings
from producer.jobs.redis_server import RedisServer
from shared.jobs.connection import connect
from shared.jobs.task_queue import TaskQueue, queue_name, runs_key
from shared.jobs.workers import Place
from shared.kinds.calibration import CalibrationTask
from shared.kinds.kind import Task
from shared.kinds.registry import encode_task
from worker.jobs.choice import Chooser
from worker.jobs.job_context import JobContext
from worker.jobs.lease_worker import LeaseWorker

RUN = run_settings(num_steps=8)


def nothing(text: str) -> dict[str, Any]:
    """The stock worker's job."""
    return {"outcome": "none", "bytes": len(text)}


def nothing_in_context(task: Task, _: JobContext) -> dict[str, Any]:
    """This project's job."""
    return {"outcome": "none", "bytes": len(task.id)}


def compare_workers(*, jobs: int, rounds: int) -> Report:
    """Time both."""
    seconds: dict[str, list[float]] = {"ours": [], "stock": []}
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        for turn in range(rounds + 1):
            ours, stock = (run(server.url, turn, jobs) for run in (_ours, _stock))
            # The first turn warms up imports and caches.
            if turn:
                seconds["ours"].append(ours)
                seconds["stock"].append(stock)
    ours, stock = (statistics.median(seconds[name]) / jobs for name in ("ours", "stock"))
    report = Report(title="job turnaround: ours and RQ's SimpleWorker")
    report.facts |= {"jobs a round": jobs, "rounds": rounds}
    report.facts |= {"ours: ms a job": 1e3 * ours, "stock: ms a job": 1e3 * stock}
    report.at_most("ours over stock", ours / stock, 1.2)
    return report


def measure_choice(*, waiting: int, choices: int) -> Report:
    """Choose jobs of two runs that have so many each in one queue, and take them out."""
    report = Report(title=f"choosing a job: two runs, {waiting} waiting jobs each")
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        connection = connect(server.url)
        queue = TaskQueue(queue_name("benchmark"), connection)
        for run in ("cal-aaaaaaaaaaaa-", "sen-bbbbbbbbbbbb-"):
            connection.rpush(queue.key, *[f"{run}{index:05d}" for index in range(waiting)])
            connection.sadd(runs_key(queue.name), run)
        chooser = Chooser(Place("here", "start"), list)
        seconds = []
        for _ in range(choices):
            start = time.perf_counter()
            choice = chooser.choose(connection, queue.name)
            seconds.append(time.perf_counter() - start)
            assert choice.job_id
            connection.lrem(queue.key, 1, choice.job_id.decode())
    report.facts |= {"choices": choices, "ms a choice, slowest": 1e3 * max(seconds)}
    report.facts |= {"ms a choice, median": 1e3 * statistics.median(seconds)}
    report.at_most("ms a choice, mean", 1e3 * statistics.fmean(seconds), 10)
    return report


def _tasks(turn: int, jobs: int) -> list[CalibrationTask]:
    first = turn * jobs
    return [
        CalibrationTask(run=RUN, store_id="benchmark", image_index=index, prompt="nothing", seed=index)
        for index in range(first, first + jobs)
    ]


def _ours(url: str, turn: int, jobs: int) -> float:
    connection = connect(url)
    name = queue_name(f"benchmark{turn}")
    TaskQueue(name, connection).enqueue_tasks(_tasks(turn, jobs))
    worker = LeaseWorker(
        name,
        connection=connection,
        beat_connection=connect(url, patient=False),
        functions={"calibration": nothing_in_context},
        host="here",
        name=f"ours-{turn}",
    )
    return _burst(worker, connection, jobs)


def _stock(url: str, turn: int, jobs: int) -> float:
    connection = connect(url)
    queue = Queue(f"stock-{turn}", connection=connection, serializer=JSONSerializer)
    for task in _tasks(turn, jobs):
        queue.enqueue("benchmarks.jobs.nothing", encode_task(task))
    worker = SimpleWorker([queue], connection=connection, name=f"stock-{turn}", serializer=JSONSerializer)
    worker.log_job_description = False
    return _burst(worker, connection, jobs)


def _burst(worker: SimpleWorker, connection: Redis, jobs: int) -> float:
    start = time.perf_counter()
    worker.work(burst=True, logging_level="ERROR")
    elapsed = time.perf_counter() - start
    done = connection.zcard(worker.queues[0].finished_job_registry.key)
    assert done == jobs, f"{done} of {jobs} jobs were done"
    return elapsed


@click.command(help=__doc__.splitlines()[0] if __doc__ else None)
@click.option("--jobs", default=300, show_default=True, help="Jobs a round.")
@click.option("--rounds", default=7, show_default=True, help="Rounds each.")
def main(**options: int) -> None:
    print_report(compare_workers(**options))
    print_report(measure_choice(waiting=20_000, choices=3000))


if __name__ == "__main__":
    main()
