"""How long a job is lost for when its worker is killed (SIGKILL), with the default lease.

    python -m benchmarks.recovery [--rounds 5]

machine   worker and supervisor die together, as when a Mac loses power: the lease has to run out
worker    the worker process dies, its supervisor lives: it returns the job and starts another worker

From the kill to the moment that another worker starts the job. Real processes on a Redis of their own;
only the model is left out. The kill comes at any time between two beats.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from redis import Redis

from benchmarks.jobs import RUN
from benchmarks.report import Report, print_report
from producer.jobs.redis_server import RedisServer
from shared.jobs.connection import connect
from shared.jobs.history import read_events
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.kinds.calibration import CalibrationTask
from shared.kinds.kind import Task
from worker.jobs.job_context import JobContext
from worker.service import process
from worker.service.options import WorkerOptions
from worker.service.runtime import Runtime
from worker.service.supervisor import Supervisor

POLL_SECONDS = 0.02
GIVE_UP_SECONDS = 300


def measure_recovery(*, rounds: int, options: dict[str, Any] | None = None) -> Report:
    """Kill a worker in each way, `rounds` times; `options` replace lease and beat of the workers."""
    seconds: dict[str, list[float]] = {"machine": [], "worker": []}
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        settings = WorkerOptions(redis_url=server.url, log_level="ERROR", **(options or {}))
        for turn in range(rounds):
            for index, (name, values) in enumerate(seconds.items()):
                values.append(_recovery_seconds(settings, 2 * turn + index, whole_machine=name == "machine"))
    report = Report(title="recovery after SIGKILL")
    report.facts |= {"lease: seconds": settings.lease_seconds, "beat: seconds": settings.beat_seconds}
    report.facts |= {"rounds": rounds}
    for name, values in seconds.items():
        report.facts[f"{name} killed: seconds, each round"] = [round(value, 1) for value in values]
    for name, values in seconds.items():
        report.at_most(f"{name} killed: seconds, slowest", max(values), 50)
    return report


def _recovery_seconds(options: WorkerOptions, index: int, *, whole_machine: bool) -> float:
    task = CalibrationTask(run=RUN, store_id="relay", image_index=index, prompt="long", seed=index)
    redis = connect(options.redis_url)
    queue = TaskQueue(queue_name("relay"), redis)
    with _machine(options) as victim:
        queue.enqueue_tasks([task])
        _wait(lambda: _starts(redis, task) == 1)
        with _machine(options):
            # The other is ready, and the fleet past the first seconds, in which it judges no lease.
            _wait(lambda: redis.scard(f"rq:workers:{queue.name}") == 2)
            _wait(lambda: float(redis.get(f"bitfleet:grace:{queue.name}") or 0) < time.time())
            # At any time between two beats.
            time.sleep(random.uniform(0, options.beat_seconds))
            workers = _children(victim.pid)
            start = time.monotonic()
            for pid in (victim.pid, *workers) if whole_machine else workers:
                os.kill(pid, signal.SIGKILL)
            _wait(lambda: _starts(redis, task) == 2)
            elapsed = time.monotonic() - start
    lists = (queue.key, queue.started_job_registry.key)
    redis.delete(*lists, f"rq:workers:{queue.name}", TaskJob.key_for(task.id))
    return elapsed


@contextmanager
def _machine(options: WorkerOptions) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor with one worker."""
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.recovery", "supervisor"], env=options.to_environment()
    )
    try:
        yield supervisor
    finally:
        for pid in _children(supervisor.pid):
            os.kill(pid, signal.SIGKILL)
        supervisor.kill()
        supervisor.wait()


def _children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def _starts(redis: Redis, task: CalibrationTask) -> int:
    return sum(event.outcome == "started" for event in read_events(redis, task.id))


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it takes too long")
        time.sleep(POLL_SECONDS)


class _EndlessRuntime(Runtime):
    """Every image takes for ever."""

    def _model_of(self, task: Task) -> Any:
        return SimpleNamespace(fingerprint="0" * 64)

    def _join_run(self, *_: Any) -> None:
        pass

    def _run_task(self, task: Task, model: Any, context: JobContext) -> bytes:
        while True:
            context.check("running")
            time.sleep(0.1)


def _run_worker() -> int:
    process.Runtime = _EndlessRuntime  # type: ignore[misc,attr-defined]
    return process.main()


def _run_supervisor() -> int:
    Supervisor.module = "benchmarks.recovery"
    return Supervisor(WorkerOptions.from_environment(), 1, queue_name=queue_name("relay")).run()


@click.command(help=__doc__.splitlines()[0] if __doc__ else None)
@click.option("--rounds", default=5, show_default=True, help="Kills of each kind.")
def main(rounds: int) -> None:
    print_report(measure_recovery(rounds=rounds))


if __name__ == "__main__":
    if sys.argv[1:] == ["supervisor"]:
        sys.exit(_run_supervisor())
    if "BITFLEET_WORKER_OPTIONS" in os.environ:
        sys.exit(_run_worker())
    main()
