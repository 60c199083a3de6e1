"""Second copies of slow jobs, for the tail of a run: whichever record lands first counts.

A copy is no job: it is not queued, holds no lease and can't fail the task. Only when its record landed
does it touch Redis otherwise: it ends the slow worker's lease, which then drops its copy.
"""

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from rq.exceptions import StopRequested
from rq.job import Job, JobStatus

from shared.errors import TaskRefusedError
from shared.jobs.asides import kind_of_job
from shared.jobs.history import read_histories
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
LAST = 50
"""So many finished jobs of a kind tell how long one takes: early and late layers differ."""
LOOK_BACK = 500
"""Among so many finished jobs of all kinds: a slow image is seen though many layers have ended since."""
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
        self._known: dict[str, _Run] = {}
        """Finished jobs, by id."""

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
        """A job that another machine runs for more than twice the median of its like; None if any waits.

        Of several, the one that runs for the most medians.
        """
        in_flight = self._queue.in_flight()
        if in_flight.ready or not in_flight.started:
            return None
        others = self._of_others(self._fetch(in_flight.started))
        if not others:
            return None
        medians, now = self._median_seconds(), datetime.fromtimestamp(self._clock(), UTC)
        slow = []
        for job in others:
            elapsed, median = _seconds(job.started_at, now), medians.get(kind_of_job(job.id))
            if median is not None and elapsed > max(SLOWER * median, self._min_seconds):
                slow.append((-elapsed / max(median, self._min_seconds), job.id, job))
        return min(slow)[-1] if slow else None

    def _of_others(self, jobs: list[TaskJob]) -> list[TaskJob]:
        """Those that another machine runs."""
        running = [job for job in jobs if job.get_status(False) == JobStatus.STARTED and job.started_at]
        histories = read_histories(self._queue.connection, [job.id for job in running])
        return [
            job
            for job, events in zip(running, histories, strict=True)
            if job.worker_name != self._worker
            and (job.worker_name, self._host) not in {(event.worker, event.host) for event in events}
        ]

    def _median_seconds(self) -> dict[str, float]:
        """Of the last finished jobs, by the beginning of their ids, where there are enough."""
        seconds: dict[str, list[float]] = {}
        for job_id, run in self._finished().items():
            if run.seconds is not None:
                seconds.setdefault(kind_of_job(job_id), []).append(run.seconds)
        return {
            kind: statistics.median(values[-LAST:])
            for kind, values in seconds.items()
            if len(values) >= MIN_FINISHED
        }

    def _finished(self) -> dict[str, "_Run"]:
        """The last finished jobs, by id, the latest at the end. What is known is not asked for again."""
        redis, key = self._queue.connection, self._queue.finished_job_registry.key
        ids = [_text(job_id) for job_id in cast(list[bytes], redis.zrange(key, -LOOK_BACK, -1))]
        unknown = [job_id for job_id in ids if job_id not in self._known]
        with redis.pipeline(transaction=False) as pipeline:
            for job_id in unknown:
                pipeline.hgetall(TaskJob.key_for(job_id))
            answers = pipeline.execute(raise_on_error=False)
        known = self._known | {
            job_id: _run_of(fields) for job_id, fields in zip(unknown, answers, strict=True)
        }
        self._known = {job_id: known[job_id] for job_id in ids}
        return self._known

    def _fetch(self, job_ids: Iterable[str]) -> list[TaskJob]:
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


class _Run(NamedTuple):
    """How a finished job was run."""

    seconds: float | None
    """None if that can't be read."""


def _run_of(fields: Any) -> _Run:
    try:
        start, end = (datetime.fromisoformat(fields[name].decode()) for name in (b"started_at", b"ended_at"))
        return _Run(_seconds(start, end))
    except (LookupError, TypeError, AttributeError, ValueError):
        return _Run(None)


def _seconds(start: Any, end: Any) -> float:
    return float((end - start).total_seconds())


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
