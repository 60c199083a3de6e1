"""The queue of task jobs. Job ids are task ids, results are kept for days, and RQ cleans up nothing."""

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from redis import Redis
from rq.exceptions import DequeueTimeout, NoSuchJobError
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty
from rq.utils import now

from shared import __version__
from shared.errors import BitfleetError
from shared.jobs.asides import kind_of_job
from shared.jobs.history import progress_key
from shared.jobs.task_job import FAILURE_TTL, JOB_TIMEOUT, RESULT_TTL, TaskJob
from shared.kinds.kind import Task
from shared.kinds.registry import encode_task, kind_of
from shared.runs import PROTOCOL

_JOB_ID = re.compile(rb"[A-Za-z0-9_-]{1,200}")
_QUEUE_NAME = re.compile(r"bitfleet-(\d+)-([A-Za-z0-9_-]+)")


def queue_name(store_id: str, protocol: int = PROTOCOL) -> str:
    """Return the name of the queue for a store and protocol. Workers only see jobs that they can serve."""
    return f"bitfleet-{protocol}-{store_id}"


def parse_queue_name(name: str) -> tuple[int, str] | None:
    """Return the protocol and store id in a queue's name, or None if the queue is not ours."""
    match = _QUEUE_NAME.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def delayed_key(name: str) -> str:
    """Return the key of a queue's jobs that wait for their next try."""
    return f"bitfleet:delayed:{name}"


def avoid_key(job_id: str) -> str:
    """Return the key of the hosts that leave a job to others, one a line; it expires when they need not."""
    return f"bitfleet:avoid:{job_id}"


def given_up_key(name: str) -> str:
    """Return the key of the jobs that our workers gave up, as RQ's registry of failed jobs has them.

    Any other failed job was failed by a worker of RQ's own, which can do none of ours.
    """
    return f"bitfleet:given-up:{name}"


def runs_key(name: str) -> str:
    """Return the key of the runs (beginnings of jobs' ids) that wait in a queue. Workers keep it right."""
    return f"bitfleet:runs:{name}"


def is_job_id(job_id: bytes) -> bool:
    """Return whether a queue's entry can be one of our job ids."""
    return bool(_JOB_ID.fullmatch(job_id))


@dataclass(frozen=True, slots=True)
class InFlight:
    """Ids of jobs that are queued or running."""

    ready: tuple[str, ...]
    """Those that any worker may take now."""
    delayed: tuple[str, ...]
    """Those that wait for their next try."""
    started: frozenset[str]

    @property
    def queued(self) -> tuple[str, ...]:
        """Ids of jobs that are not running."""
        return self.ready + self.delayed

    @property
    def ids(self) -> frozenset[str]:
        """Ids of all."""
        return self.started.union(self.queued)


class Withdrawn(NamedTuple):
    """How many jobs were withdrawn."""

    queued: int
    running: int


# KEYS: the queue's list, the delayed jobs, the leases, and the progress. ARGV: ids of jobs. Returns how many
# of them waited, and how many ran.
_WITHDRAW = """
local wanted = {}
for _, id in ipairs(ARGV) do
  wanted[id] = true
end
local queued, running, kept = 0, 0, {}
for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  if wanted[id] then
    queued = queued + 1
  else
    kept[#kept + 1] = id
  end
end
if queued > 0 then
  redis.call('DEL', KEYS[1])
  for from = 1, #kept, 1000 do
    redis.call('RPUSH', KEYS[1], unpack(kept, from, math.min(from + 999, #kept)))
  end
end
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  if wanted[id] then
    queued = queued + redis.call('ZREM', KEYS[2], id)
  end
end
for _, lease in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  if wanted[string.match(lease, '^[^:]*')] then
    running = running + redis.call('ZREM', KEYS[3], lease)
  end
end
for _, id in ipairs(ARGV) do
  redis.call('DEL', 'rq:job:' .. id, 'bitfleet:avoid:' .. id, 'bitfleet:history:' .. id)
  redis.call('HDEL', KEYS[4], id)
end
return {queued, running}
"""

# KEYS: of jobs. ARGV: how many texts follow that all of them share, names and values in turn; those texts;
# then data and description of each job.
_WRITE_JOBS = """
local shared = {}
for place = 1, tonumber(ARGV[1]) do
  shared[place] = ARGV[1 + place]
end
for place, key in ipairs(KEYS) do
  local own = 2 * place + #shared
  redis.call('HSET', key, 'data', ARGV[own], 'description', ARGV[own + 1], unpack(shared))
end
"""


class TaskQueue(Queue):
    """A queue of task jobs in JSON. A job stays in it until a worker takes it in one atomic operation."""

    job_class = TaskJob
    DEFAULT_TIMEOUT = JOB_TIMEOUT

    def __init__(self, name: str, connection: Redis, **kwargs: Any) -> None:
        kwargs.setdefault("job_class", TaskJob)
        kwargs["serializer"] = JSONSerializer
        super().__init__(name, connection=connection, **kwargs)

    @property
    def delayed_key(self) -> str:
        """The key of the jobs that wait for their next try, by when they may be taken (Redis' clock)."""
        return delayed_key(self.name)

    @classmethod
    def lmove(cls, connection: Redis, queue_key: str, timeout: float | None) -> Any:
        """Wait for a job and return its id, leaving it at the head of the queue.

        RQ would remove the job here, and it would be lost if the worker died right after. Our workers remove
        it later, together with noting who has it (lease_scripts). Entries that can't be one of our job ids
        are deleted, because RQ would end the worker on them.

        Raises:
            DequeueTimeout: no job came within `timeout` seconds.
        """
        while True:
            # Moving from head to head is the documented way to wait for an element without removing it.
            if timeout is None:
                head = connection.lmove(queue_key, queue_key, "LEFT", "LEFT")
            else:
                head = connection.blmove(queue_key, queue_key, timeout, "LEFT", "LEFT")  # type: ignore[arg-type]
                if head is None:
                    raise DequeueTimeout(timeout, queue_key)
            if head is None:
                return None
            if is_job_id(cast(bytes, head)):
                return queue_key, head
            connection.lrem(queue_key, 0, cast(str, head))

    @classmethod
    def _fetch_dequeued_job(
        cls,
        connection: Redis,
        queue_key: str,
        job_id: str,
        job_class: type[Job] | None = None,
        serializer: Any = None,
        death_penalty_class: type[BaseDeathPenalty] | None = None,
    ) -> tuple[Job, Queue] | None:
        """Read a job. An id without a job is removed from the queue."""
        found = super()._fetch_dequeued_job(
            connection, queue_key, job_id, job_class, serializer, death_penalty_class
        )
        if found is None:
            connection.lrem(queue_key, 0, job_id)
        return found

    def move_dependents_to_ready(self, *args: Any, **kwargs: Any) -> dict[str, list[str]]:
        """Do nothing: our jobs have no dependents."""
        return {}

    def enqueue_dependents(self, *args: Any, **kwargs: Any) -> dict[str, list[str]]:
        """Do nothing: our jobs have no dependents."""
        return {}

    def enqueue_tasks(self, tasks: Iterable[Task]) -> int:
        """Enqueue tasks that are neither queued nor running; return how many.

        A finished or failed job with the same id is replaced.
        """
        batch = {task.id: task for task in tasks}
        if not batch:
            return 0
        keys = [self.job_class.key_for(task_id) for task_id in batch]
        with self.connection.pipeline() as pipeline:
            for key in (
                self.failed_job_registry.key,
                self.finished_job_registry.key,
                given_up_key(self.name),
            ):
                pipeline.zrem(key, *batch)
            pipeline.delete(*keys, *map(avoid_key, batch))
            pipeline.sadd(self.redis_queues_keys, self.key)
            fields = self._fields_of_all_jobs()
            texts = [text for task in batch.values() for text in (_data(task), task.label)]
            write = ("EVAL", _WRITE_JOBS, len(keys), *keys, len(fields), *fields, *texts)
            pipeline.execute_command(*write)  # type: ignore[no-untyped-call]
            pipeline.rpush(self.key, *batch)
            pipeline.sadd(runs_key(self.name), *{kind_of_job(task_id) for task_id in batch})
            pipeline.execute()
        return len(batch)

    def _fields_of_all_jobs(self) -> list[Any]:
        """Return names and values of what RQ writes of each job, but for its data and its description.

        RQ's own `enqueue_many` takes a millisecond for each of them.
        """
        job = self.create_job(
            "any",
            timeout=JOB_TIMEOUT,
            result_ttl=RESULT_TTL,
            failure_ttl=FAILURE_TTL,
            status=JobStatus.QUEUED,
        )
        job.enqueued_at = now()
        fields = {**job.to_dict(), "status": JobStatus.QUEUED.value}
        return [text for name in fields.keys() - {"data", "description"} for text in (name, fields[name])]

    def withdraw(self, job_ids: Iterable[str]) -> "Withdrawn":
        """Remove jobs that wait, and end the leases of those that run: their workers drop the results.

        All in one step, with what was written of the jobs: a worker takes one before it or not at all.
        """
        keys = [self.key, self.delayed_key, self.started_job_registry.key, progress_key(self.name)]
        script = self.connection.register_script(_WITHDRAW)
        return Withdrawn(*script(keys=keys, args=[*job_ids]))

    def task_of(self, job_id: str) -> Task | None:
        """Return the task of a job; None if there is no such job, or this revision can't read it."""
        try:
            job = TaskJob.fetch(job_id, connection=self.connection, serializer=self.serializer)
            return cast(TaskJob, job).task
        except (NoSuchJobError, BitfleetError):
            return None

    def in_flight(self) -> InFlight:
        """Return the ids of queued and running jobs, read in one transaction.

        RQ's own functions would clean up at the same time, without a lock.
        """
        with self.connection.pipeline(transaction=True) as pipeline:
            pipeline.lrange(self.key, 0, -1)
            pipeline.zrange(self.delayed_key, 0, -1)
            pipeline.zrange(self.started_job_registry.key, 0, -1)
            ready, delayed, started = pipeline.execute()
        return InFlight(
            ready=tuple(_text(job_id) for job_id in ready),
            delayed=tuple(_text(job_id) for job_id in delayed),
            started=frozenset(_text(entry).partition(":")[0] for entry in started),
        )

    def failed_ids(self) -> set[str]:
        """Return the ids of jobs that failed in every attempt."""
        return set(self.failed_job_registry.get_job_ids(cleanup=False))


def _data(task: Task) -> bytes:
    """Return the call of a job as RQ keeps it; packed quickly, as there are thousands."""
    call: tuple[Any, ...] = (kind_of(task).name, None, [encode_task(task), __version__], {})
    return zlib.compress(JSONSerializer.dumps(call), 1)  # type: ignore[no-untyped-call]


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
