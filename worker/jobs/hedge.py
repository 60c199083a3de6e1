"""Second copies of slow jobs, for the tail of a run: whichever record lands first counts.

A copy is no job: it is not queued, holds no lease and can't fail the task. Only when its record landed
does it touch Redis otherwise: it ends the slow worker's lease, which then drops its copy.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from rq.exceptions import StopRequested
from rq.job import Job, JobStatus

from shared.errors import TaskRefusedError
from shared.jobs.redis_time import redis_time
from shared.jobs.task_job import RESULT_TTL, TaskJob
from shared.jobs.task_queue import TaskQueue
from shared.jobs.workers import live_workers
from shared.kinds.kind import Task
from shared.kinds.registry import kind_of
from worker.jobs.copy_claim import claim_copy, drop_claim, others_done
from worker.jobs.failures import is_metal_error
from worker.jobs.job_context import HandBackError, JobContext
from worker.jobs.pace import Paces

logger = logging.getLogger("bitfleet.worker")

MARGIN = 0.25
"""By this part of its own time a copy has to end sooner, at least."""
LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class SlowJob:
    """A job that is worth a copy."""

    job: TaskJob
    done: float
    """When the copy will be done, by Redis' clock."""
    without: float
    """When the job ends without it."""


@dataclass(slots=True)
class CopyContext(JobContext):
    """Of a copy: looks, at most once a second, whether it is still needed."""

    looked: float = field(default=0.0)
    """On the monotonic clock."""

    def check(self, progress: str) -> None:
        """Called between micro-batches and denoising steps.

        Raises:
            HandBackError: the copy is not needed any more.
        """
        if time.monotonic() - self.looked >= LOOK_SECONDS:
            self.looked = time.monotonic()
            self.confirm()


class Hedge:
    """What an idle worker does about jobs that others have run for long."""

    def __init__(
        self,
        queue: TaskQueue,
        functions: Mapping[str, Callable[[Task, JobContext], dict[str, Any]]],
        *,
        host: str,
        worker: str,
        min_seconds: float,
        each_look: Callable[[], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`each_look` is called about once a second while a copy runs; `clock` is Redis' if not given.

        Jobs of this `host` are never copied: a second one here would only share its GPU.
        """
        self._clock = clock or (lambda: redis_time(queue.connection))
        self._queue = queue
        self._functions = functions
        self._host = host
        self._worker = worker
        self._min_seconds = min_seconds
        self._each_look = each_look
        self._on = True
        self._paces = Paces(queue)

    def take_copy(self) -> None:
        """Run a second copy of a slow job, if there is one; return when it is over."""
        slow = self.find_slow_job() if self._on else None
        if slow is None:
            return
        try:
            self._copy(slow)
        finally:
            drop_claim(self._queue, slow.job)

    def _copy(self, slow: "SlowJob") -> None:
        job = slow.job
        logger.info("%s: slow on %s, taking a second copy", job.description, job.worker_name)
        context = CopyContext(confirm=lambda: self._require_need(slow))
        task = job.task
        try:
            outcome = self._functions[kind_of(task).name](task, context)["outcome"]
        except HandBackError as reason:
            logger.info("%s: the second copy is dropped, %s", job.description, reason)
        except StopRequested:
            raise
        except Exception as error:
            if is_metal_error(error):
                raise
            self._on = False
            logger.warning("%s: the second copy failed, no more are taken: %s", job.description, error)
        else:
            logger.info("%s: the second copy is done (%s)", job.description, outcome)
            if outcome == "stored":
                self._end_leases(job)

    def find_slow_job(self) -> "SlowJob | None":
        """A job of another machine that ends sooner with a copy here; None if any waits.

        Of several, the one that would end last.
        """
        # Asked between any two jobs: nobody wants to read a queue of 30,000 each time.
        if self._queue.connection.llen(self._queue.key):
            return None
        in_flight = self._queue.in_flight()
        if in_flight.ready or not in_flight.started:
            return None
        workers = {worker.name: worker for worker in live_workers(self._queue)}
        here = {self._worker, *(name for name, worker in workers.items() if worker.host == self._host)}
        others = [job for job in self._fetch(in_flight.started) if job.worker_name not in here]
        if not others:
            return None
        self._paces.read()
        speeds = {name: speed for name, worker in workers.items() if (speed := worker.tally.flops_per_second)}
        now = self._clock()
        slow = [found for job in others if (found := self._judge(job, speeds, now))]
        for found in sorted(slow, key=lambda found: (-found.without, found.job.id)):
            if claim_copy(self._queue, found.job, self._worker, now=now, done=found.done):
                return found
        return None

    def _judge(self, job: TaskJob, speeds: Mapping[str, float], now: float) -> "SlowJob | None":
        """When the job ends with and without a copy here; None if that is unknown, or too much alike."""
        mine = self._paces.seconds(job, self._worker, speeds)
        theirs = self._paces.seconds(job, job.worker_name or "", speeds)
        if mine is None or theirs is None or job.started_at is None:
            return None
        # What is overdue is taken to need as long again as it is overdue.
        without = now + abs(now - job.started_at.timestamp() - theirs)
        copied = others_done(job, self._worker, now)
        slow = SlowJob(job=job, done=now + mine, without=without if copied is None else min(without, copied))
        return slow if slow.without - slow.done > max(MARGIN * mine, self._min_seconds) else None

    def _fetch(self, job_ids: Iterable[str]) -> list[TaskJob]:
        """Those that are jobs of ours, and run."""
        queue, found = self._queue, []
        for job in TaskJob.fetch_many(list(job_ids), queue.connection, serializer=queue.serializer):
            try:
                if isinstance(job, TaskJob) and job.task and job.get_status(False) == JobStatus.STARTED:
                    found.append(job)
            except TaskRefusedError:
                continue
        return found

    def _require_need(self, slow: "SlowJob") -> None:
        self._each_look()
        job = slow.job
        in_flight = self._queue.in_flight()
        if job.id not in in_flight.ids:
            raise HandBackError("the job is done elsewhere")
        # The job itself may be back in the queue: its worker died, and the copy is half done.
        if set(in_flight.ready) - {job.id}:
            raise HandBackError("there is other work")
        if not claim_copy(self._queue, job, self._worker, now=self._clock(), done=slow.done):
            raise HandBackError("a faster machine copies the job")

    def _end_leases(self, job: Job) -> None:
        """The slow worker sees it at its next beat, and leaves no second shard for a collector gone home."""
        leases = job.started_job_registry.key
        redis = self._queue.connection
        entries = cast(list[bytes], redis.zrange(leases, 0, -1))
        ours = [entry for entry in entries if entry.partition(b":")[0] == job.id.encode()]
        if ours:
            redis.zrem(leases, *ours)
            redis.expire(job.key, RESULT_TTL)
