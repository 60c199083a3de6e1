"""A LeaseWorker in a process of its own, with fake functions: `python -m tests.lease_script URL NAME LEASE`.

The name up to a hyphen is the host's. A task's prompt says what its function does. What ran is noted in
the Redis list `ran`.
"""

import logging
import os
import signal
import sys
import time
from typing import Any

from redis import Redis

from shared.errors import ModelUnavailableError
from shared.jobs.connection import connect
from shared.jobs.task_queue import queue_name
from shared.kinds.calibration import CalibrationTask
from shared.kinds.kind import Task
from worker.jobs import verdict
from worker.jobs.job_context import JobContext
from worker.jobs.lease_worker import LeaseWorker

EXIT_BROKEN = 1
SMALL_HOST_SAYS = {
    "large": "[metal::malloc] Attempting to allocate 48736917632 bytes which is greater than the maximum "
    "allowed buffer size of 30150672384 bytes.",
    "long": "[METAL] Command buffer execution failed: Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
}
"""What tasks with these prompts meet on a host named small."""


def main(url: str, name: str, lease_seconds: str) -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    verdict.FIRST_WAIT_SECONDS = verdict.LONGEST_WAIT_SECONDS = 0.01
    notes = connect(url)

    def run(task: Task, context: JobContext) -> dict[str, Any]:
        assert isinstance(task, CalibrationTask)
        # Counted before it is told: once told, this process may be put to sleep at any moment.
        attempt = int(notes.incr(f"attempts:{task.id}"))
        notes.rpush("ran", f"{name} starts {task.id}")
        act(task.prompt, name, notes, context, attempt)
        notes.rpush("ran", f"{name} ends {task.id}")
        return {"by": name}

    worker = LeaseWorker(
        queue_name("relay"),
        connection=connect(url),
        beat_connection=connect(url, patient=False),
        functions={"calibration": run},
        host=name.partition("-")[0],
        start_id=name.partition("-")[0],
        name=name,
        lease_seconds=int(lease_seconds),
        beat_seconds=0.3,
    )
    worker.work(logging_level="WARNING")
    return 0 if worker.exited_cleanly else EXIT_BROKEN


def act(what: str, name: str, notes: Redis, context: JobContext, attempt: int) -> None:
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "no model here":
        raise ModelUnavailableError("the checkpoint is missing")
    if what in SMALL_HOST_SAYS and name.startswith("small"):
        raise RuntimeError(SMALL_HOST_SAYS[what])
    if what == "not on bad":
        if name.startswith("bad"):
            raise ValueError("a library is broken here")
        while not notes.exists("wake"):
            context.check("step 1 of 2")
            time.sleep(0.02)
    if attempt > 1:
        return
    # Until the test says so: with looks at the lease as the real functions have them, or without.
    while what in ("listen", "deaf") and not notes.exists("wake"):
        if what == "listen":
            context.check("step 1 of 2")
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
