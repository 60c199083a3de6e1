"""RQ's SimpleWorker without what we don't use, and with clocks, signals and a full Redis in mind."""

import contextlib
import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

from redis import Redis
from redis.exceptions import OutOfMemoryError, RedisError
from rq import SimpleWorker, worker_registration
from rq.exceptions import StopRequested
from rq.job import Job
from rq.queue import Queue
from rq.utils import now

from shared.jobs.redis_time import redis_time
from shared.jobs.workers import SEEN_FIELD
from worker.jobs.choice import DrainedError
from worker.jobs.failures import REDIS_IS_FULL

logger = logging.getLogger("bitfleet.worker")

FULL_POLL_SECONDS = 2.0
LEAVE_SECONDS = 1.0


class LeanWorker(SimpleWorker):
    """Waits for jobs of one queue, and leaves when it is told to."""

    exited_cleanly = False
    """Whether it left because it was told to, or because nothing was left to do.

    RQ's loop also ends, without an exception, over an error in itself.
    """
    drained = False
    """Whether it left because this machine was drained."""
    leaving = False
    """Whether it leaves the list of workers just now."""
    _maintained: float | None = None
    """When it cleaned up last, on the monotonic clock."""

    @property
    def dequeue_timeout(self) -> int:
        """Seconds to wait for a job; lost ones are looked for in between."""
        return max(1, min(10, int(self.maintenance_interval)))

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """Wait for a job, and meanwhile for room in Redis; None when none is left for a burst."""
        told = False
        while True:
            try:
                found = super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
                self.exited_cleanly = self.exited_cleanly or found is None
                return found
            except DrainedError:
                self.drained = self.exited_cleanly = True
                raise
            except OutOfMemoryError:
                if not told:
                    logger.warning(REDIS_IS_FULL)
                told = True
                time.sleep(FULL_POLL_SECONDS)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """RQ's in one round trip, and a full Redis must not end the worker over it.

        Raises:
            StopRequested: an idle worker was told to stop. The signal's own exception may have been raised in
                code that lets none through, as logging does; RQ calls this each time before it waits.
        """
        if pipeline is not None:
            super().heartbeat(timeout, pipeline)
            return
        if self._stop_requested and self.get_state() != "busy":
            raise StopRequested
        with contextlib.suppress(OutOfMemoryError), self.connection.pipeline() as own:
            super().heartbeat(timeout, own)
            own.execute()

    def say_alive(self, redis: Redis) -> None:
        """All that Redis knows of this worker, anew: it may have been wiped."""
        self.last_heartbeat = now()
        fields = {"state": self.get_state(), SEEN_FIELD: redis_time(redis)}
        with redis.pipeline() as pipeline:
            pipeline.hset(self.key, mapping=self.serialize() | fields)
            pipeline.expire(self.key, self.worker_ttl + 60)
            pipeline.expire(self.executions_key, self.worker_ttl + 60)
            worker_registration.register(self, pipeline)
            pipeline.execute()

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """First signal: finish the job, then leave."""
        if self._stop_requested:
            # The second one came while the first was dealt with.
            self.request_force_stop(signum, frame)
            return
        self._stop_requested = self.exited_cleanly = True
        signal.signal(signal.SIGINT, self.request_force_stop)
        signal.signal(signal.SIGTERM, self.request_force_stop)
        if self.get_state() != "busy":
            raise StopRequested
        logger.warning("stopping after this job; once more hands it back now")

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """RQ's, by a clock that nobody sets."""
        last = self._maintained
        return last is None or time.monotonic() - last > self.maintenance_interval

    def prepare_job_execution(self, job: Job, remove_from_intermediate_queue: bool = False) -> None:
        """RQ writes here that the job runs; it was written when the job was taken."""

    def register_death(self) -> None:
        """Leave the list of workers, if Redis is there; else the list forgets us by itself."""
        self.leaving = True
        # Not in this thread: a patient client waits for minutes for a Redis that is away.
        thread = threading.Thread(target=self._leave_list, name="leave", daemon=True)
        thread.start()
        thread.join(LEAVE_SECONDS)

    def _leave_list(self) -> None:
        with contextlib.suppress(RedisError, OSError):
            if self.executions:
                # A job that an error interrupted stays known for the supervisor.
                worker_registration.unregister(self)
            else:
                super().register_death()  # type: ignore[no-untyped-call]

    def clean_group_registries(self) -> None:
        """No groups here."""

    def check_for_suspension(self, burst: bool) -> None:
        """Nobody suspends workers through Redis."""

    def subscribe(self) -> None:
        """No commands are taken from Redis."""

    def unsubscribe(self) -> None:
        """Nothing was subscribed to."""
