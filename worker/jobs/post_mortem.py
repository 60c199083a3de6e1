"""What the supervisor does for the job of a worker process that died: says how, and returns it."""

import logging
import signal
from typing import cast

from redis.exceptions import RedisError
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE

from shared.errors import BitfleetError
from shared.jobs.connection import connect
from shared.jobs.history import Outcome
from shared.jobs.task_queue import TaskQueue
from worker.jobs.lease import EXIT_TIMEOUT
from worker.jobs.maintenance import is_lease, return_job
from worker.service.process import EXIT_BROKEN, EXIT_REFUSED, EXIT_TROUBLE

logger = logging.getLogger("bitfleet.worker")

_CAUSES = {
    EXIT_TIMEOUT: "the job was over its time limit",
    EXIT_BROKEN: "the GPU or the worker itself failed",
    EXIT_TROUBLE: "Redis or store out of reach, or full",
    EXIT_REFUSED: "it can't start here",
}


def cause_of_death(code: int) -> str:
    """A process's return code in words."""
    if code >= 0:
        return _CAUSES.get(code, f"exit code {code}")
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def outcome_of_death(code: int) -> Outcome:
    """What a process's return code says of the job that it ran."""
    if code == EXIT_TIMEOUT:
        return "timed out"
    if code == -signal.SIGKILL:
        return "killed"
    # Somebody stopped it, or Redis or the store were away.
    if code in (EXIT_TROUBLE, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
        return "handed back"
    return "crashed"


def report_death(redis_url: str, queue_name: str, worker: str, code: int) -> None:
    """Return the job that a dead worker ran, and note in its history how the worker died.

    When Redis can't be reached nothing is done: then the lease has to run out.
    """
    try:
        with connect(redis_url, patient=False) as redis:
            return_its_jobs(TaskQueue(queue_name, redis), worker, code)
    except (BitfleetError, RedisError, OSError) as error:
        logger.warning("its job is returned when its lease runs out (%s)", error)


def return_its_jobs(queue: TaskQueue, worker: str, code: int) -> None:
    """Return the jobs that a dead worker held."""
    executions = WORKER_EXECUTIONS_KEY_TEMPLATE.format(worker)
    for entry in cast(set[bytes], queue.connection.smembers(executions)):
        if is_lease(entry):
            # The lease still holds, but nobody is left to renew it.
            return_job(queue, entry, outcome_of_death(code), cause_of_death(code))
