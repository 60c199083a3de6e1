"""What the supervisor does for the job of a worker process that died: says how, and ends its lease."""

import logging
import signal
from typing import cast

from redis import Redis
from redis.exceptions import RedisError
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE

from shared.errors import BitfleetError
from shared.jobs.connection import connect
from shared.jobs.history import add_crash
from shared.jobs.task_queue import TaskQueue, is_job_id
from worker.jobs.lease import EXIT_TIMEOUT
from worker.service.process import EXIT_BROKEN, EXIT_TROUBLE

logger = logging.getLogger("bitfleet.worker")

_CAUSES = {
    EXIT_TIMEOUT: "the job was over its time limit",
    EXIT_BROKEN: "the GPU or the worker itself failed",
    EXIT_TROUBLE: "Redis or store out of reach, or full",
}


def cause_of_death(code: int) -> str:
    """A process's return code in words."""
    if code >= 0:
        return _CAUSES.get(code, f"exit code {code}")
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def report_death(redis_url: str, queue_name: str, worker: str, code: int) -> None:
    """Note the cause in the history of the job that a dead worker ran, and let its lease run out now.

    Without a Redis to be reached, nothing: then the lease runs out by itself.
    """
    try:
        with connect(redis_url, patient=False) as redis:
            _report(redis, queue_name, worker, code)
    except (BitfleetError, RedisError, OSError) as error:
        logger.warning("its job is returned when its lease runs out (%s)", error)


def _report(redis: Redis, queue_name: str, worker: str, code: int) -> None:
    leases = TaskQueue(queue_name, redis).started_job_registry.key
    running = cast(set[bytes], redis.smembers(WORKER_EXECUTIONS_KEY_TEMPLATE.format(worker)))
    for entry in running:
        job_id = entry.partition(b":")[0]
        # Its last words may have reached Redis, and others may have its job already.
        if not is_job_id(job_id) or redis.zscore(leases, entry) is None:
            continue
        add_crash(redis, job_id.decode(), worker, cause_of_death(code))
        redis.zadd(leases, {entry: 0}, xx=True)
