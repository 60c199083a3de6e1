"""Returning the jobs of dead workers, by whichever worker comes by."""

import logging
from typing import cast

from redis import Redis
from rq import worker_registration
from rq.exceptions import NoSuchJobError
from rq.job import JobStatus
from rq.job_lifecycle import record_job_failure
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.serializers import JSONSerializer

from shared.jobs.history import crash_event, push_event
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue, is_job_id
from worker.jobs.lease_scripts import end_lease

logger = logging.getLogger("bitfleet.worker")

SILENT = "gave no sign of life for a whole lease"
LOOKED_KEPT_SECONDS = 24 * 3600

# KEYS: when somebody looked last, and until when leases are left alone. ARGV: now, a lease, how long to keep
# both keys (all in seconds).
_LOOK = """
local now, lease = tonumber(ARGV[1]), tonumber(ARGV[2])
local last = tonumber(redis.call('GET', KEYS[1]) or '') or 0
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
if now - last > lease then
  redis.call('SET', KEYS[2], now + lease / 2, 'EX', ARGV[3])
  return 1
end
if now < (tonumber(redis.call('GET', KEYS[2]) or '') or 0) then
  return 1
end
return 0
"""


def in_grace_period(connection: Redis, queue_name: str, lease_seconds: int, now: float) -> bool:
    """Say whether leases that ran out must be left alone for now: for half a lease after an outage.

    An outage is a whole lease in which no worker asked this: Redis was away, or every worker was cut off.
    Leases ran out that nobody could renew, and those who still compute get the time to renew theirs.

    Args:
        now: the time, in seconds since 1970.
    """
    keys = [f"bitfleet:looked:{queue_name}", f"bitfleet:grace:{queue_name}"]
    script = connection.register_script(_LOOK)
    return bool(script(keys=keys, args=[repr(now), lease_seconds, LOOKED_KEPT_SECONDS]))


def return_lost_jobs(connection: Redis, queue_name: str, now: float) -> None:
    """Give back the jobs whose lease ended before `now` (seconds since 1970), and forget what is out of date.

    Any number of workers may do this at once: each job is returned once. There is no lock, which a worker
    that died or fell asleep just then would keep from the others.
    """
    queue = TaskQueue(queue_name, connection)
    leases = cast(
        list[tuple[bytes, float]],
        connection.zrange(queue.started_job_registry.key, 0, -1, withscores=True),
    )
    for lease, ends in leases:
        if not is_lease(lease):
            connection.zrem(queue.started_job_registry.key, lease)
        elif ends <= now:
            return_job(queue, lease, cause=SILENT, ended_by=now)
    for registry in (FinishedJobRegistry, FailedJobRegistry):
        registry(queue_name, connection=connection, job_class=TaskJob, serializer=JSONSerializer).cleanup()
    worker_registration.clean_worker_registry(queue)


def is_lease(entry: bytes) -> bool:
    """Whether an entry among the leases could be one: a job's id, a colon, an execution's."""
    return entry.count(b":") == 1 and is_job_id(entry.partition(b":")[0])


def return_job(queue: TaskQueue, lease: bytes, *, cause: str, ended_by: float | None) -> bool:
    """Put a dead worker's job back at the front of its queue; without attempts left, it failed.

    One step, together with the end of the lease and a line in the job's history. Nothing is done, and False
    returned, when the lease was renewed or the job ended meanwhile.

    Args:
        cause: how the worker died.
        ended_by: the lease must have ended by then (seconds since 1970); None: whether or not it holds.
    """
    redis, job_id = queue.connection, lease.partition(b":")[0].decode()
    with redis.pipeline() as commands:
        try:
            job = TaskJob.fetch(job_id, connection=redis, serializer=queue.serializer)
        except NoSuchJobError:
            return end_lease(redis, queue.started_job_registry.key, lease, ended_by, commands)
        # A lease may be left behind by a job that ended.
        lost = job.get_status(refresh=False) == JobStatus.STARTED
        if lost:
            # Filed under our queue, whatever its hash says.
            job.origin = queue.name
            event = crash_event(redis, job_id, job.worker_name or "unknown", cause)
            push_event(commands, job_id, event)
            if job.retries_left:
                job.retry(queue, commands)
            else:
                record_job_failure(job, f"its worker died ({cause})", commands)
        if not end_lease(redis, queue.started_job_registry.key, lease, ended_by, commands):
            return False
    if lost:
        logger.warning("%s is returned: worker %s died (%s)", job.description, event.worker, cause)
    return lost
