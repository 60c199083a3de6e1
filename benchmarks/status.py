"""How long commands take that look at a large run and steer it: each as a whole process, and a look alone.

    python -m benchmarks.status [--tasks 20000]

A quarter of the images is collected, and all others have failed, each with three tracebacks. Then they are
enqueued again. CPU seconds are of the command alone; where the machine does other things, they say more than
the time on the clock.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
from redis import Redis

from benchmarks.collected_folder import make_collected_folder
from benchmarks.report import Report, print_report
from producer.fleet import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.folder.tasks import calibration_tasks
from producer.jobs.claims import claim
from producer.jobs.redis_server import RedisServer
from producer.ledger import Ledger
from producer.progress.status import MAX_FAILURES
from producer.progress.survey import look_at_run
from shared.jobs.connection import connect
from shared.jobs.history import Event, push_event
from shared.jobs.task_queue import TaskQueue, given_up_key, queue_name
from shared.stores.relay_store import RELAY_ID, RelayStore

PROGRAM = Path(sys.executable).with_name("producer")
FAILED = ("status", "status --json", "failures", "failures --json", "runs", "pause", "resume", "doctor")
"""Commands on a run with failed tasks."""
AGAIN = ("retry --all", "status", "runs", "cancel 'image 1*'", "retry --all")
"""And then, in this order."""
TRACEBACK = "Traceback (most recent call last):\n" + '  File "a.py", line 1, in f\n    g()\n' * 8
SECONDS = 1.0
"""What a person is to wait for at most, on a machine that does nothing else."""


def measure_status(*, tasks: int) -> Report:
    """Make a run of so many tasks, look at it and steer it."""
    report = Report(title=f"looking and steering at {tasks:,} tasks: seconds (CPU seconds)")
    with tempfile.TemporaryDirectory() as temporary, RedisServer(Path(temporary) / "redis") as server:
        root = Path(temporary) / "calib"
        missing = 3 * tasks // 4
        folder = make_collected_folder(
            root, images=tasks, missing=missing, num_steps=1, latent=2, text_width=8, store_id=RELAY_ID
        )
        connection = connect(server.url)
        _fail(folder, connection, missing)
        environment = os.environ | {"REDIS_URL": server.url, "BITFLEET_CALIB_DIR": str(root)}
        for line, seconds, cpu in _timed(["--help", *FAILED, *AGAIN], environment):
            report.facts[line] = f"{seconds:.2f} ({cpu:.2f})"
        looks = list(_looks(folder, connection))
        listed = subprocess.run(
            [PROGRAM, "runs", "--json"], env=environment, check=True, capture_output=True
        ).stdout
        run = json.loads(listed)[0]["run"]
        for _, seconds, cpu in _timed([f"forget --yes {run}"], environment):
            report.facts["forget --yes RUN"] = f"{seconds:.2f} ({cpu:.2f})"
    report.at_most("a look of --watch: seconds, the slowest of five", max(looks), SECONDS)
    return report


def _fail(folder: CalibFolder, connection: Redis, missing: int) -> None:
    """As workers would leave tasks that they gave up."""
    queue = TaskQueue(queue_name(RELAY_ID), connection)
    wanted = calibration_tasks(folder.require_run())
    for start in range(len(wanted) - missing, len(wanted), 1000):
        batch = wanted[start : start + 1000]
        with connection.pipeline() as pipeline:
            for key in (queue.failed_job_registry.key, given_up_key(queue.name)):
                pipeline.zadd(key, {task.id: 2e9 for task in batch})
            for task in batch:
                for host in ("air", "mini", "studio"):
                    detail = f"{TRACEBACK}RuntimeError: no luck on {host}"
                    push_event(
                        pipeline,
                        task.id,
                        Event(outcome="failed", host=host, worker=f"{host}-1", detail=detail),
                    )
            pipeline.execute()
    claim(connection, queue.name, wanted, folder.root)


def _timed(lines: list[str], environment: dict[str, str]) -> Iterator[tuple[str, float, float]]:
    """Yield each command with its time on the clock and its CPU seconds."""
    seen: dict[str, int] = {}
    for line in lines:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        done = subprocess.run(
            [PROGRAM, *line.replace("'", "").split(None, 1 if "'" in line else -1)],
            env=environment,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # The doctor finds fewer prompts than images.
        assert done.returncode == 0 or line == "doctor"
        seen[line] = seen.get(line, 0) + 1
        name = f"{line}, again" if seen[line] > 1 else line
        yield name, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _looks(folder: CalibFolder, connection: Redis) -> Iterator[float]:
    fleet = Fleet(connection=connection, store=RelayStore(connection), store_url=None)
    ledger = Ledger(folder, connection, fleet.store)
    for _ in range(5):
        start = time.perf_counter()
        status = look_at_run(folder, ledger, fleet, told=MAX_FAILURES)
        yield time.perf_counter() - start
        assert status.parts[0].collected + status.parts[0].queued == status.parts[0].wanted


@click.command()
@click.option("--tasks", default=20_000, show_default=True)
def main(tasks: int) -> None:
    """Print how long it takes."""
    print_report(measure_status(tasks=tasks))


if __name__ == "__main__":
    main()
