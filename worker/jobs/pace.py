"""How long a job takes on a worker, by finished jobs like it and the speeds that workers tell."""

import statistics
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple, cast

from shared.jobs.asides import kind_of_job
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue

MIN_FINISHED = 3
NEAREST = 7
"""So many finished jobs of a kind tell how long one takes: those that were taken nearest to it. Layers are
enqueued in the order of the forward pass, and late ones are cheap."""
LOOK_BACK = 500
"""Among so many finished jobs of all kinds: a slow image is seen though many layers have ended since."""


class _Run(NamedTuple):
    """How a finished job was run."""

    worker: str
    start: float
    """Seconds since 1970."""
    seconds: float


class Paces:
    """The last finished jobs of a queue."""

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._known: dict[str, _Run | None] = {}
        """By job id, the latest at the end; None for one that can't be read."""
        self._runs: dict[str, list[_Run]] = {}
        """By the beginning of the jobs' ids."""

    def read(self) -> None:
        """Look which jobs have ended since. What is known of one is not asked for again."""
        redis, key = self._queue.connection, self._queue.finished_job_registry.key
        ids = [_text(job_id) for job_id in cast(list[bytes], redis.zrange(key, -LOOK_BACK, -1))]
        unknown = [job_id for job_id in ids if job_id not in self._known]
        with redis.pipeline(transaction=False) as pipeline:
            for job_id in unknown:
                pipeline.hgetall(TaskJob.key_for(job_id))
            answers = pipeline.execute(raise_on_error=False)
        known = self._known | dict(zip(unknown, map(_run_of, answers), strict=True))
        self._known = {job_id: known[job_id] for job_id in ids}
        self._runs = {}
        for job_id, run in self._known.items():
            if run is not None:
                self._runs.setdefault(kind_of_job(job_id), []).append(run)

    def seconds(self, job: TaskJob, worker: str, speeds: Mapping[str, float]) -> float | None:
        """Return how long a job that runs takes on a worker; None if too few like it have ended.

        Where no speeds are known, it is the median of what the others took.

        Args:
            job: the job.
            worker: name of the worker.
            speeds: floating point operations a second of workers, by name.
        """
        runs, start = self._runs.get(kind_of_job(job.id), []), job.started_at
        if start is None or len(runs) < MIN_FINISHED:
            return None
        like = sorted(runs, key=lambda run: abs(run.start - start.timestamp()))[:NEAREST]
        work = [run.seconds * speeds[run.worker] for run in like if run.worker in speeds]
        if worker not in speeds or not work:
            return statistics.median(run.seconds for run in like)
        return statistics.median(work) / speeds[worker]


def _run_of(fields: Any) -> _Run | None:
    try:
        start, end = (datetime.fromisoformat(_text(fields[name])) for name in (b"started_at", b"ended_at"))
        return _Run(_text(fields[b"worker_name"]), start.timestamp(), (end - start).total_seconds())
    except (LookupError, TypeError, ValueError, OverflowError, OSError):
        return None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
