"""How long `producer status` takes on a large run: the whole command, and one more look of --watch.

    python -m benchmarks.status [--tasks 20000]

Half of the images are collected, half are queued.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.collected_folder import make_collected_folder
from benchmarks.report import Report, print_report
from producer.enqueue import Fleet
from producer.folder.tasks import calibration_tasks
from producer.jobs.redis_server import RedisServer
from producer.ledger import Ledger
from producer.progress.survey import look_at_run
from shared.jobs.connection import connect
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.stores.relay_store import RELAY_ID, RelayStore


def measure_status(*, tasks: int) -> Report:
    """Make a run of so many tasks and look at it."""
    report = Report(title=f"producer status at {tasks:,} tasks")
    with tempfile.TemporaryDirectory() as temporary, RedisServer(Path(temporary) / "redis") as server:
        root = Path(temporary) / "calib"
        folder = make_collected_folder(
            root, images=tasks, missing=tasks // 2, num_steps=1, latent=2, text_width=8, store_id=RELAY_ID
        )
        connection = connect(server.url)
        wanted = calibration_tasks(folder.require_run())
        TaskQueue(queue_name(RELAY_ID), connection).enqueue_tasks(wanted[tasks - tasks // 2 :])
        fleet = Fleet(connection=connection, store=RelayStore(connection), store_url=None)
        ledger = Ledger(folder, connection, fleet.store)
        looks = []
        for _ in range(5):
            start = time.perf_counter()
            status = look_at_run(folder, ledger, fleet)
            looks.append(time.perf_counter() - start)
        assert status.parts[0].collected == status.parts[0].queued == tasks // 2
        start = time.perf_counter()
        command = [sys.executable, "-m", "producer.cli", "status", "--calib-dir", str(root)]
        subprocess.run([*command, "--redis-url", server.url], check=True, stdout=subprocess.DEVNULL)
        report.facts["the whole command: seconds"] = time.perf_counter() - start
    report.at_most("a look: seconds, the slowest of five", max(looks), 1)
    return report


@click.command()
@click.option("--tasks", default=20_000, show_default=True)
def main(tasks: int) -> None:
    """Print how long it takes."""
    print_report(measure_status(tasks=tasks))


if __name__ == "__main__":
    main()
