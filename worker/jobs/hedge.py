"""Second copies of slow jobs, for the tail of a run: whichever record lands first counts.

A copy is no job: it is not queued, holds no lease and can't fail the task. Only when its record landed
does it touch Redis otherwise: it ends the slow worker's lease, which then drops its copy.
"""

import logging
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from rq.exceptions import StopRequested
from rq.job import Job, JobStatus

from shared.errors import TaskRefusedError
from shared.jobs.redis_time import redis_time
from shared.jobs.task_job import RESULT_TTL, TaskJob
from shared.jobs.task_queue import TaskQueue
from shared.kinds.kind import Task
from shared.kinds.registry import kind_of
from worker.jobs.failures import is_metal_error
from worker.jobs.job_context import HandBackError, JobContext

logger = logging.getLogger("bitfleet.worker")

SLOWER = 2.0
"""Times the median of finished jobs. Started then, a copy on an ordinary machine ends at three medians."""
MIN_FINISHED = 3
LOOK_BACK = 50
LOOK_SECONDS = 1.0


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
        worker: str,
        min_seconds: float,
        each_look: Callable[[], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`each_look` is called about once a second while a copy runs; `clock` is Redis' if not given."""
        self._clock = clock or (lambda: redis_time(queue.connection))
        self._queue = queue
        self._functions = functions
        self._worker = worker
        self._min_seconds = min_seconds
        self._each_look = each_look
        self._on = True

    def take_copy(self) -> None:
        """Run a second copy of a slow job, if there is one; return when it is over."""
        job = self.find_slow_job() if self._on else None
        if job is None:
            return
        logger.info("%s: slow on %s, taking a second copy", job.description, job.worker_name)
        context = CopyContext(confirm=lambda: self._require_need(job))
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

    def find_slow_job(self) -> TaskJob | None:
        """A job that another worker runs for more than twice the median of its like; None if any waits."""
        in_flight = self._queue.in_flight()
        if in_flight.ready or not in_flight.started:
            return None
        jobs = [job for job in self._fetch(in_flight.started) if job.get_status(False) == JobStatus.STARTED]
        others = [job for job in jobs if job.started_at and job.worker_name != self._worker]
        if not others:
            return None
        medians = self._median_seconds()
        now = datetime.fromtimestamp(self._clock(), UTC)
        slow = [
            job
            for job in others
            if (median := medians.get(_kind(job.task))) is not None
            and _seconds(job.started_at, now) > max(SLOWER * median, self._min_seconds)
        ]
        # Several idle machines spread over several slow jobs.
        return random.choice(slow) if slow else None

    def _median_seconds(self) -> dict[tuple[type, str], float]:
        """Of the last finished jobs, by kind and group, where there are enough."""
        registry = self._queue.finished_job_registry
        ids = cast(list[bytes], self._queue.connection.zrange(registry.key, -LOOK_BACK, -1))
        seconds: dict[tuple[type, str], list[float]] = {}
        for job in self._fetch(job_id.decode("utf-8", "replace") for job_id in ids):
            if job.started_at and job.ended_at:
                seconds.setdefault(_kind(job.task), []).append(_seconds(job.started_at, job.ended_at))
        return {
            kind: statistics.median(values) for kind, values in seconds.items() if len(values) >= MIN_FINISHED
        }

    def _fetch(self, job_ids: Any) -> list[TaskJob]:
        """Those that are jobs of ours."""
        queue, found = self._queue, []
        for job in TaskJob.fetch_many(list(job_ids), queue.connection, serializer=queue.serializer):
            try:
                if isinstance(job, TaskJob) and job.task:
                    found.append(job)
            except TaskRefusedError:
                continue
        return found

    def _require_need(self, job: Job) -> None:
        self._each_look()
        in_flight = self._queue.in_flight()
        if job.id not in in_flight.ids:
            raise HandBackError("the job is done elsewhere")
        # The job itself may be back in the queue: its worker died, and the copy is half done.
        if set(in_flight.ready) - {job.id}:
            raise HandBackError("there is other work")

    def _end_leases(self, job: Job) -> None:
        """The slow worker sees it at its next beat, and leaves no second shard for a collector gone home."""
        leases = job.started_job_registry.key
        redis = self._queue.connection
        entries = cast(list[bytes], redis.zrange(leases, 0, -1))
        ours = [entry for entry in entries if entry.partition(b":")[0] == job.id.encode()]
        if ours:
            redis.zrem(leases, *ours)
            redis.expire(job.key, RESULT_TTL)


def _kind(task: Task) -> tuple[type, str]:
    return type(task), task.namespace


def _seconds(start: Any, end: Any) -> float:
    return float((end - start).total_seconds())
