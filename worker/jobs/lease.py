"""A job's lease: kept alive by a thread with a Redis client of its own while the main thread computes."""

import logging
import os
import threading
import time
from collections.abc import Callable

from redis import Redis
from redis.exceptions import RedisError
from rq.executions import Execution
from rq.job import Job
from rq.registry import StartedJobRegistry

from shared.jobs.history import Progress, set_progress
from shared.jobs.task_job import TaskJob
from worker.jobs.job_context import JobContext
from worker.jobs.lease_scripts import renew_lease

logger = logging.getLogger("bitfleet.worker")

TICK_SECONDS = 1.0
TIMEOUT_GRACE_SECONDS = 60.0
EXIT_TIMEOUT = 75


class BeatThread:
    """The thread of one beat after another: one for each would cost more than a short job."""

    def __init__(self) -> None:
        self._beat: Beat | None = None
        self._wake: threading.Event | None = None

    def take(self, beat: "Beat") -> None:
        """Run this one, as soon as the last is over."""
        self._beat = beat
        if self._wake is None:
            self._wake = threading.Event()
            threading.Thread(target=self._run, args=(self._wake,), name="beat", daemon=True).start()
        self._wake.set()

    def abandon(self) -> None:
        """The thread hangs in a Redis time-out; the next beat gets another one."""
        self._wake = None

    def _run(self, wake: threading.Event) -> None:
        while True:
            wake.wait()
            wake.clear()
            if self._beat and self._wake is wake:
                self._beat.run()


class Beat:
    """Renews the lease of one execution, publishes progress, runs maintenance; a context manager.

    Never touches MLX: its streams belong to the main thread.
    """

    def __init__(
        self,
        *,
        thread: BeatThread,
        connection: Redis,
        job: Job,
        execution: Execution,
        context: JobContext,
        lease_seconds: int,
        beat_seconds: float,
        sender: Callable[[str], Progress],
        each_beat: Callable[[Redis], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`clock` gives seconds, from any beginning; None for the monotonic one."""
        self._clock = clock or time.monotonic
        self._thread = thread
        self._redis = connection
        self._job = job
        self._execution = execution
        self._context = context
        self._lease_seconds = lease_seconds
        self._beat_seconds = beat_seconds
        self._sender = sender
        self._each_beat = each_beat
        self._registry = StartedJobRegistry(job.origin, connection=connection, job_class=TaskJob)
        self._over = threading.Event()
        self._at_work = threading.Lock()
        self._started = self._next_beat = self._clock()
        self._published = ""

    @property
    def published(self) -> bool:
        """Whether the job's progress stands in Redis."""
        return bool(self._published)

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self._over.is_set()

    def __enter__(self) -> "Beat":
        self._thread.take(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        # A beat in the middle of a Redis time-out must not hold up the job's outcome.
        if self._at_work.acquire(timeout=2):
            self._at_work.release()
        else:
            self._thread.abandon()

    def run(self) -> None:
        """Beat until the job is over."""
        while not self._over.wait(min(TICK_SECONDS, self._beat_seconds)):
            with self._at_work:
                if not self._over.is_set():
                    self.look()

    def look(self) -> None:
        """Do what is due: about once a second."""
        now = self._clock()
        self._exit_when_stuck(now - self._started)
        try:
            self._publish()
            if now >= self._next_beat:
                self._next_beat = now + self._beat_seconds
                self._renew()
                self._each_beat(self._redis)
        except (RedisError, OSError):
            self._next_beat = now
        except Exception:
            # A thread that died unseen would lose the lease of a job that is well.
            logger.exception("a beat failed")

    def _renew(self) -> None:
        with self._redis.pipeline() as then:
            self._execution.heartbeat(self._registry, self._lease_seconds, then)
            lease = self._execution.composite_key
            if not renew_lease(self._redis, self._registry.key, lease, self._lease_seconds, then):
                self._context.lost = True

    def _publish(self) -> None:
        text = self._context.progress
        if text != self._published:
            set_progress(self._redis, self._job.origin, self._job.id, self._sender(text))
            self._published = text

    def _exit_when_stuck(self, elapsed: float) -> None:
        # A hung GPU call never returns to Python, so no exception would reach it.
        if elapsed > (self._job.timeout or 0) + TIMEOUT_GRACE_SECONDS:
            logger.error("%s ran for %.0f s, over its time limit: leaving", self._job.id, elapsed)
            os._exit(EXIT_TIMEOUT)
