"""Returning the jobs of dead workers, by whichever worker comes by."""

import logging
from typing import cast

from redis import Redis
from rq import worker_registration
from rq.exceptions import NoSuchJobError
from rq.job import JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry
from rq.serializers import JSONSerializer

from shared.jobs.history import Event, Outcome, read_events
from shared.jobs.redis_time import redis_time
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue, given_up_key, is_job_id
from shared.jobs.worker_keys import forget_odd_workers
from shared.jobs.workers import Place
from worker.jobs.lease_scripts import end_lease
from worker.jobs.outcome import end_attempt, hand_back
from worker.jobs.strangers import return_strangers_jobs

logger = logging.getLogger("bitfleet.worker")

SILENT = "gave no sign of life for a whole lease"
LOOKED_KEPT_SECONDS = 24 * 3600

# KEYS: when somebody looked last, and until when leases are left alone. ARGV: a lease, and how long to keep
# both keys (in seconds).
_LOOK = """
local time = redis.call('TIME')
local now, lease = time[1] + time[2] / 1000000, tonumber(ARGV[1])
local last = tonumber(redis.call('GET', KEYS[1]) or '') or 0
redis.call('SET', KEYS[1], string.format('%.6f', now), 'EX', ARGV[2])
if now - last > lease then
  redis.call('SET', KEYS[2], string.format('%.6f', now + lease / 2), 'EX', ARGV[2])
  return 1
end
local grace = tonumber(redis.call('GET', KEYS[2]) or '') or 0
-- None of ours is longer.
if now < grace and grace <= now + lease then
  return 1
end
return 0
"""


def in_grace_period(connection: Redis, queue_name: str, lease_seconds: int) -> bool:
    """Say whether leases that ran out must be left alone for now: for half a lease after an outage.

    An outage is a whole lease in which no worker asked this: Redis was away, or every worker was cut off.
    Leases ran out that nobody could renew, and those who still compute get the time to renew theirs.
    """
    keys = [f"bitfleet:looked:{queue_name}", f"bitfleet:grace:{queue_name}"]
    script = connection.register_script(_LOOK)
    return bool(script(keys=keys, args=[lease_seconds, LOOKED_KEPT_SECONDS]))


def return_lost_jobs(connection: Redis, queue_name: str) -> None:
    """Give back the jobs whose lease ran out, by Redis' clock.

    Any number of workers may do this at once: each job is returned once. There is no lock, which a worker
    that died or fell asleep just then would keep from the others.
    """
    queue = TaskQueue(queue_name, connection)
    now = redis_time(connection)
    leases = cast(
        list[tuple[bytes, float]],
        connection.zrange(queue.started_job_registry.key, 0, -1, withscores=True),
    )
    for lease, ends in leases:
        if not is_lease(lease):
            connection.zrem(queue.started_job_registry.key, lease)
        elif ends <= now:
            return_job(queue, lease, "silent", SILENT, over=True)


def tidy(connection: Redis, queue_name: str) -> None:
    """Forget what is out of date, and take back what RQ's own workers took."""
    queue, now = TaskQueue(queue_name, connection), redis_time(connection)
    for registry in (FinishedJobRegistry, FailedJobRegistry):
        registry(queue_name, connection=connection, job_class=TaskJob, serializer=JSONSerializer).cleanup(now)
    connection.zremrangebyscore(given_up_key(queue_name), 0, now)
    return_strangers_jobs(queue)
    forget_odd_workers(queue)
    worker_registration.clean_worker_registry(queue)


def is_lease(entry: bytes) -> bool:
    """Whether an entry among the leases could be one: a job's id, a colon, an execution's."""
    return entry.count(b":") == 1 and is_job_id(entry.partition(b":")[0])


def return_job(queue: TaskQueue, lease: bytes, outcome: Outcome, cause: str, *, over: bool = False) -> bool:
    """End a lost worker's lease, and let the job's history decide when and where it is tried again.

    One step, together with a line in that history. Nothing is done, and False returned, when the lease was
    renewed or the job ended meanwhile.

    Args:
        queue: that of the job.
        lease: the worker's.
        outcome: of the attempt.
        cause: how the worker was lost.
        over: whether the lease must have run out.
    """
    redis, job_id = queue.connection, lease.partition(b":")[0].decode()
    leases_key = queue.started_job_registry.key
    with redis.pipeline() as then:
        try:
            job = TaskJob.fetch(job_id, connection=redis, serializer=queue.serializer)
        except NoSuchJobError:
            return end_lease(redis, leases_key, lease, then, over=over)
        # A lease may be left behind by a job that ended.
        if job.get_status(refresh=False) != JobStatus.STARTED:
            end_lease(redis, leases_key, lease, then, over=over)
            return False
        worker = job.worker_name or "unknown"
        host, start = _place_of(queue, job_id, worker)
        event = Event(outcome=outcome, host=host, start=start, worker=worker, detail=cause)
        if outcome == "handed back":
            returned = hand_back(queue, job, lease, event, then, over=over)
        else:
            returned = end_attempt(queue, job, lease, event, then, over=over) is not None
    if returned:
        logger.warning("%s is returned: worker %s was lost (%s)", job.description, worker, cause)
    return returned


def _place_of(queue: TaskQueue, job_id: str, worker: str) -> Place:
    events = [event for event in read_events(queue.connection, job_id) if event.worker == worker]
    return Place(events[-1].host, events[-1].start) if events else Place("", "")
