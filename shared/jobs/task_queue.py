"""The queue of task jobs: deterministic ids, long-lived results, and no cleaning behind one's back."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis
from rq.exceptions import DequeueTimeout
from rq.job import Job, Retry
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty

from shared import __version__
from shared.jobs.task_job import FAILURE_TTL, JOB_TIMEOUT, MAX_RETRIES, RESULT_TTL, TaskJob
from shared.kinds.kind import Task
from shared.kinds.registry import encode_task, kind_of
from shared.runs import PROTOCOL

_JOB_ID = re.compile(rb"[A-Za-z0-9_-]{1,200}")
_QUEUE_NAME = re.compile(r"bitfleet-(\d+)-([A-Za-z0-9_-]+)")


def queue_name(store_id: str, protocol: int = PROTOCOL) -> str:
    """One queue a store and protocol: a worker never sees a job it could not serve."""
    return f"bitfleet-{protocol}-{store_id}"


def parse_queue_name(name: str) -> tuple[int, str] | None:
    """Protocol and store id of one of our queues' names; None for a stranger's."""
    match = _QUEUE_NAME.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def is_job_id(job_id: bytes) -> bool:
    """Whether a queue's entry could be a job of ours."""
    return bool(_JOB_ID.fullmatch(job_id))


@dataclass(frozen=True, slots=True)
class InFlight:
    """Job ids on their way."""

    queued: tuple[str, ...]
    started: frozenset[str]

    @property
    def ids(self) -> frozenset[str]:
        """All of them."""
        return self.started.union(self.queued)


class TaskQueue(Queue):
    """A queue of task jobs, JSON only. A job is in it until, in one step, a worker starts it."""

    job_class = TaskJob
    DEFAULT_TIMEOUT = JOB_TIMEOUT

    def __init__(self, name: str, connection: Redis, **kwargs: Any) -> None:
        kwargs.setdefault("job_class", TaskJob)
        kwargs["serializer"] = JSONSerializer
        super().__init__(name, connection=connection, **kwargs)

    @classmethod
    def lmove(cls, connection: Redis, queue_key: str, timeout: int | None) -> Any:
        """Wait for a job and return its id; it stays at the head of the queue.

        RQ pops it here, and a worker that died before it wrote down that it has the job would lose it. Our
        workers take the job in the same step in which they write that down (lease_scripts). What can't be
        an id of ours is removed: RQ would end the worker over it.

        Raises:
            DequeueTimeout: no job came within `timeout` seconds.
        """
        while True:
            # From the head to the head: the documented way to wait for an element and leave it where it is.
            if timeout is None:
                head = connection.lmove(queue_key, queue_key, "LEFT", "LEFT")
            else:
                head = connection.blmove(queue_key, queue_key, timeout, "LEFT", "LEFT")
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
        """Read a job; an id without one is removed from the queue."""
        found = super()._fetch_dequeued_job(
            connection, queue_key, job_id, job_class, serializer, death_penalty_class
        )
        if found is None:
            connection.lrem(queue_key, 0, job_id)
        return found

    def move_dependents_to_ready(self, *args: Any, **kwargs: Any) -> dict[str, list[str]]:
        """No job of ours has any."""
        return {}

    def enqueue_dependents(self, *args: Any, **kwargs: Any) -> dict[str, list[str]]:
        """No job of ours has any."""
        return {}

    def enqueue_tasks(self, tasks: Iterable[Task]) -> int:
        """Enqueue jobs for tasks known not to be in flight; return how many.

        A job of the same id left from an earlier attempt (finished or failed) is replaced.
        """
        batch = list(tasks)
        with self.connection.pipeline() as pipeline:
            for task in batch:
                for registry in (self.failed_job_registry, self.finished_job_registry):
                    pipeline.zrem(registry.key, task.id)
                pipeline.delete(self.job_class.key_for(task.id))
            self.enqueue_many(
                [
                    self.prepare_data(
                        kind_of(task).name,
                        args=[encode_task(task), __version__],
                        job_id=task.id,
                        description=task.label,
                        timeout=JOB_TIMEOUT,
                        result_ttl=RESULT_TTL,
                        failure_ttl=FAILURE_TTL,
                        retry=Retry(max=MAX_RETRIES, interval=0, enqueue_at_front=True),
                    )
                    for task in batch
                ],
                pipeline=pipeline,
            )
            pipeline.execute()
        return len(batch)

    def withdraw(self, job_ids: Iterable[str]) -> None:
        """Take back jobs that wait; those that run end by themselves."""
        with self.connection.pipeline() as pipeline:
            for job_id in job_ids:
                pipeline.lrem(self.key, 0, job_id)
            pipeline.execute()

    def in_flight(self) -> InFlight:
        """Ids that wait or run, read in one transaction and without RQ's unlocked cleaning."""
        with self.connection.pipeline(transaction=True) as pipeline:
            pipeline.lrange(self.key, 0, -1)
            pipeline.zrange(self.started_job_registry.key, 0, -1)
            queued, started = pipeline.execute()
        return InFlight(
            queued=tuple(_text(job_id) for job_id in queued),
            started=frozenset(_text(entry).partition(":")[0] for entry in started),
        )

    def failed_ids(self) -> set[str]:
        """Ids of jobs that failed after all their retries."""
        return set(self.failed_job_registry.get_job_ids(cleanup=False))


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
