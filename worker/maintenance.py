"""Returning the jobs of dead workers, under a short lock, by whichever worker comes by."""

import logging

from redis import Redis
from rq import worker_registration
from rq.job import Job
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from shared.history import Event, add_event
from shared.jobs import TaskJob
from shared.task_queue import TaskQueue

logger = logging.getLogger("bitfleet.worker")

# Popped, but never started: the worker died in between. RQ would count it as a failed attempt, and would
# do so at once when the same job is stuck a second time.
_RETURN_STUCK = """
for _, entry in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  if string.sub(entry, 1, string.len(ARGV[1]) + 1) == ARGV[1] .. ':' then
    redis.call('LREM', KEYS[1], 0, ARGV[1])
    return 0
  end
end
if redis.call('LREM', KEYS[1], 0, ARGV[1]) > 0 then
  redis.call('LPUSH', KEYS[2], ARGV[1])
  return 1
end
return 0
"""


def return_lost_jobs(connection: Redis, queue_name: str, lease_seconds: int) -> None:
    """Give back jobs whose lease ran out, and jobs popped by a worker that died before it began them."""
    queue = TaskQueue(queue_name, connection)
    if not queue.acquire_maintenance_lock():
        return
    try:
        StartedJobRegistry(
            queue_name, connection=connection, job_class=TaskJob, serializer=JSONSerializer
        ).cleanup(exception_handlers=[_note_crash])
        _return_stuck_jobs(queue, lease_seconds)
        for registry in (FinishedJobRegistry, FailedJobRegistry):
            registry(
                queue_name, connection=connection, job_class=TaskJob, serializer=JSONSerializer
            ).cleanup()
        worker_registration.clean_worker_registry(queue)
    finally:
        connection.delete(queue.registry_cleaning_key)


def _note_crash(job: Job, *_: object) -> None:
    worker = job.worker_name or "unknown"
    logger.warning("%s: worker %s gave no sign of life, the job is returned", job.description, worker)
    add_event(
        job.connection,
        job.id,
        Event(outcome="crashed", host="", worker=worker, detail="no sign of life within the lease"),
    )


def _return_stuck_jobs(queue: TaskQueue, lease_seconds: int) -> None:
    script = queue.connection.register_script(_RETURN_STUCK)
    for job_id in set(queue.intermediate_queue.get_job_ids()):
        seen = f"bitfleet:stuck:{queue.name}:{job_id}"
        # First seen: wait a lease, since most of these are about to start.
        if queue.connection.set(seen, 1, nx=True, ex=lease_seconds * 10):
            continue
        if queue.connection.ttl(seen) > lease_seconds * 9:
            continue
        queue.connection.delete(seen)
        if script(
            keys=[queue.intermediate_queue_key, queue.key, queue.started_job_registry.key], args=[job_id]
        ):
            logger.warning("%s was popped but never started: it is returned", job_id)
