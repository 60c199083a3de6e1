"""Returning the jobs of dead workers, under a short lock, by whichever worker comes by."""

import logging
from functools import partial
from typing import cast

from redis import Redis
from rq import worker_registration
from rq.job import Job
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from shared.jobs.history import add_crash
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue, is_job_id

logger = logging.getLogger("bitfleet.worker")

# Popped, but never started: the worker died in between. RQ would count it as a failed attempt, and would
# do so at once when the same job is stuck a second time. Leased, but still among the popped: it is just
# being started, or its worker died of that and the lease will run out; removed here, it would be lost.
_RETURN_STUCK = """
for _, entry in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  if string.sub(entry, 1, string.len(ARGV[1]) + 1) == ARGV[1] .. ':' then
    return 0
  end
end
if redis.call('LREM', KEYS[1], 0, ARGV[1]) > 0 then
  redis.call('LPUSH', KEYS[2], ARGV[1])
  return 1
end
return 0
"""


def leases_are_current(connection: Redis, queue_name: str, lease_seconds: int) -> bool:
    """False for half a lease after a whole one in which nobody asked this.

    Then Redis was away or every worker cut off, and leases ran out that nobody could renew: those who
    still compute get the time to renew theirs.
    """
    watched = f"bitfleet:watched:{queue_name}"
    if connection.set(watched, 1, ex=lease_seconds, get=True) is None:
        connection.set(f"{watched}:pause", 1, px=lease_seconds * 500)
        return False
    return not connection.exists(f"{watched}:pause")


def return_lost_jobs(connection: Redis, queue_name: str, lease_seconds: int) -> None:
    """Give back jobs whose lease ran out, and jobs popped by a worker that died before it began them."""
    queue = TaskQueue(queue_name, connection)
    if not queue.acquire_maintenance_lock():
        return
    try:
        leases = _Leases(queue_name, connection=connection, job_class=TaskJob, serializer=JSONSerializer)
        leases.drop_strangers()
        leases.cleanup(exception_handlers=[partial(_note_crash, queue_name)])
        _return_stuck_jobs(queue, lease_seconds)
        for registry in (FinishedJobRegistry, FailedJobRegistry):
            registry(
                queue_name, connection=connection, job_class=TaskJob, serializer=JSONSerializer
            ).cleanup()
        worker_registration.clean_worker_registry(queue)
    finally:
        connection.delete(queue.registry_cleaning_key)


class _Leases(StartedJobRegistry):
    """The leases of one queue, whose jobs go back as task jobs."""

    def get_queue(self) -> TaskQueue:
        return TaskQueue(self.name, self.connection)

    def drop_strangers(self) -> None:
        """RQ would end every worker over an entry that is no job's."""
        entries = cast(list[bytes], self.connection.zrange(self.key, 0, -1))
        strangers = [
            entry for entry in entries if entry.count(b":") != 1 or not is_job_id(entry.partition(b":")[0])
        ]
        if strangers:
            self.connection.zrem(self.key, *strangers)


def _note_crash(queue_name: str, job: Job, *_: object) -> None:
    # What comes next files the job under its origin: under ours, whatever its hash says.
    job.origin = queue_name
    worker = job.worker_name or "unknown"
    detail = add_crash(job.connection, job.id, worker, "gave no sign of life for a whole lease")
    logger.warning("%s is returned: worker %s died (%s)", job.description, worker, detail)


def _return_stuck_jobs(queue: TaskQueue, lease_seconds: int) -> None:
    redis, popped_key = queue.connection, queue.intermediate_queue_key
    popped = set(cast(list[bytes], redis.lrange(popped_key, 0, -1)))
    for entry in {entry for entry in popped if not _is_job(redis, entry)}:
        redis.lrem(popped_key, 0, entry)  # type: ignore[arg-type]
        popped.remove(entry)
    seen_key = f"bitfleet:stuck:{queue.name}"
    seen = cast(dict[bytes, bytes], redis.hgetall(seen_key))
    # One that started since: popped another time, it has its whole lease again.
    if gone := seen.keys() - popped:
        redis.hdel(seen_key, *gone)
    now = redis.time()[0]
    for entry in popped:
        # First seen: wait a lease, since most of these are about to start.
        if entry not in seen:
            redis.hset(seen_key, entry, now)
        elif now - int(seen[entry]) >= lease_seconds:
            _return_stuck_job(queue, entry.decode())


def _is_job(redis: Redis, entry: bytes) -> bool:
    return is_job_id(entry) and bool(redis.exists(TaskJob.key_for(entry.decode())))


def _return_stuck_job(queue: TaskQueue, job_id: str) -> None:
    script = queue.connection.register_script(_RETURN_STUCK)
    if script(keys=[queue.intermediate_queue_key, queue.key, queue.started_job_registry.key], args=[job_id]):
        logger.warning("%s was popped but never started: it is returned", job_id)
