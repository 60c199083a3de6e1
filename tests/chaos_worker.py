"""Worker processes of the chaos tests: all real but the model. A task's prompt says what it does.

    python -m tests.chaos_worker              a worker, with its options in the environment
    python -m tests.chaos_worker supervise N  a supervisor of N of them

"0.2" computes for so many seconds, in steps; "poison" kills the process; "hang" never ends, whatever comes.
"""

import contextlib
import datetime
import hashlib
import logging
import os
import random
import signal
import sys
import time
from types import SimpleNamespace
from typing import Any

import rq.utils
from rq.job import Job
from rq.queue import Queue

from shared.jobs import history
from shared.jobs.task_queue import queue_name
from shared.kinds.calibration import CalibrationTask
from shared.kinds.kind import Task
from worker.jobs import lean_worker, lease, lease_worker, verdict
from worker.jobs.job_context import JobContext
from worker.jobs.lease_worker import LeaseWorker
from worker.service import process, runtime, supervisor
from worker.service.options import WorkerOptions
from worker.service.runtime import Runtime

STEP_SECONDS = 0.02
GAP_SECONDS = 0.3


def shard_of(task: Task) -> bytes:
    """Some 20 kB, different for every task."""
    return hashlib.shake_256(task.id.encode()).digest(20_000)


class FakeRuntime(Runtime):
    """Computes nothing, and takes its time for it."""

    def _model_of(self, task: Task) -> Any:
        return SimpleNamespace(fingerprint="f" * 64)

    def _join_run(self, task: Task, model: Any, context: JobContext) -> None:
        pass

    def _run_task(self, task: Task, model: Any, context: JobContext) -> bytes:
        assert isinstance(task, CalibrationTask)
        if task.prompt == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        while task.prompt == "hang":
            with contextlib.suppress(Exception):
                time.sleep(3600)
        end = time.monotonic() + float(task.prompt) * float(os.environ.get("CHAOS_SLOWNESS", "1"))
        while time.monotonic() < end:
            context.check("computing")
            time.sleep(STEP_SECONDS)
        return shard_of(task)


CHANCE = random.Random(os.environ.get("CHAOS_SEED"))


class SlowToStart(LeaseWorker):
    """Now and then takes its time before and after taking a job, for a signal to find it there."""

    def _take(self, job: Job, queue: Queue) -> Any:
        self._dawdle()
        execution = super()._take(job, queue)
        self._dawdle()
        return execution

    def _dawdle(self) -> None:
        if CHANCE.random() < 0.1:
            time.sleep(GAP_SECONDS)


def be_quick() -> None:
    """Tries follow one another soon."""
    verdict.FIRST_WAIT_SECONDS, verdict.LONGEST_WAIT_SECONDS = 0.1, 1.0


def put_clock_wrong(seconds: float, after: float) -> None:
    """From so many seconds after the start on, as if somebody had set this machine's clock by hand."""
    right, start = time.time, time.monotonic()

    def wrong() -> float:
        return right() + (seconds if time.monotonic() - start > after else 0)

    class WrongClock(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.fromtimestamp(wrong(), tz)

    time.time = wrong
    history.datetime = WrongClock  # type: ignore[misc]
    # All of RQ asks these functions.
    rq.utils.datetime = SimpleNamespace(**vars(datetime) | {"datetime": WrongClock})  # type: ignore[attr-defined]


def work() -> int:
    """A worker process as it is, with the model replaced."""
    if "CHAOS_CLOCK" in os.environ:
        put_clock_wrong(float(os.environ["CHAOS_CLOCK"]), after=0.5)
    lease.TIMEOUT_GRACE_SECONDS = 0.2
    be_quick()
    lease_worker.TROUBLE_SECONDS = lean_worker.FULL_POLL_SECONDS = 0.3
    lease_worker.NO_ROOM_SECONDS = runtime.RELAY_POLL_SECONDS = 0.3
    if host := os.environ.get("CHAOS_HOST"):
        process.host_name = lambda: host  # type: ignore[attr-defined]
    process.Runtime = FakeRuntime  # type: ignore[misc]
    process.LeaseWorker = SlowToStart  # type: ignore[misc]
    return process.main()


class QuickSupervisor(supervisor.Supervisor):
    """Starts these workers, and the next one soon."""

    module = "tests.chaos_worker"
    first_backoff = max_backoff = 0.1


def supervise(count: int) -> int:
    """A supervisor as it is, with the worker process replaced."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    be_quick()
    options = WorkerOptions.from_environment()
    return QuickSupervisor(options, count, queue_name=queue_name("relay")).run()


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[2])) if sys.argv[1:2] == ["supervise"] else work())
