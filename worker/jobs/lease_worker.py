"""The RQ worker: a SimpleWorker (MLX is not fork-safe) whose jobs are leased, fenced and handed back."""

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any

from redis import Redis
from redis.exceptions import OutOfMemoryError
from rq import SimpleWorker, worker_registration
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.utils import now

from shared.errors import BitfleetError, LeaseLostError
from shared.jobs.history import Event, Progress, add_event, clear_progress, forget_events
from shared.jobs.task_job import MAX_RETRIES, TaskJob
from shared.jobs.task_queue import TaskQueue
from shared.kinds.kind import Task
from worker.jobs.failures import (
    HOPELESS,
    NOT_ON_THIS_MACHINE,
    NOT_THE_JOBS_FAULT,
    REDIS_IS_FULL,
    is_metal_error,
    traceback_text,
)
from worker.jobs.hedge import Hedge
from worker.jobs.job_context import HandBackError, JobContext
from worker.jobs.lease import Beat, BeatThread
from worker.jobs.maintenance import leases_are_current, return_lost_jobs

logger = logging.getLogger("bitfleet.worker")

TaskFunction = Callable[[Task, JobContext], dict[str, Any]]

FULL_POLL_SECONDS = 2.0
TROUBLE_SECONDS = 10.0


class LeaseWorker(SimpleWorker):
    """Runs one queue's jobs in the main thread.

    A job is leased for `lease_seconds`; the beat renews it. Whoever finds an expired lease returns the
    job. Before an outcome is written the lease is looked at again, so that a machine that slept drops
    its late result.
    """

    def __init__(
        self,
        queue_name: str,
        *,
        connection: Redis,
        beat_connection: Redis,
        functions: Mapping[str, TaskFunction],
        host: str,
        name: str,
        lease_seconds: int = 45,
        beat_seconds: float = 10.0,
        hedge: bool = False,
    ) -> None:
        self.lease_seconds = lease_seconds
        self.beat_seconds = beat_seconds
        self.host = host
        self.fatal: BitfleetError | None = None
        """Why this machine can't go on, when it can't."""
        self.left_in_order = False
        """Told to leave, or nothing left to do: RQ's loop also ends, silently, over an error in itself."""
        self.broken = False
        """Whether the GPU is in a state that only a new process gets rid of."""
        self._in_trouble = False
        self._beats = BeatThread()
        self._beat_redis = beat_connection
        self._functions = functions
        self._context = JobContext(confirm=lambda: None)
        super().__init__(
            [TaskQueue(queue_name, connection)],
            name=name,
            connection=connection,
            job_class=self._bound_job_class(),
            queue_class=TaskQueue,
            serializer=JSONSerializer,
            worker_ttl=25,
            # The wait for the next look comes on top of the lease until a dead worker's job is found.
            maintenance_interval=max(1, int(beat_seconds / 4)),
        )
        self.log_job_description = False
        self.log_result_lifespan = False
        self._hedge: Hedge | None = None
        if hedge:
            self._hedge = Hedge(
                TaskQueue(queue_name, connection),
                functions,
                worker=self.name,
                min_seconds=beat_seconds,
                each_look=self._maintain_when_due,
            )

    def _bound_job_class(self) -> type[TaskJob]:
        def bind(function: TaskFunction) -> Callable[[Task], dict[str, Any]]:
            return lambda task: function(task, self._context)

        table = {name: bind(function) for name, function in self._functions.items()}
        return type("BoundTaskJob", (TaskJob,), {"functions": table})

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
                self.left_in_order = self.left_in_order or found is None
                return found
            except OutOfMemoryError:
                if not told:
                    logger.warning(REDIS_IS_FULL)
                told = True
                time.sleep(FULL_POLL_SECONDS)

    # The lease

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Seconds until a silent worker's job is returned."""
        return self.lease_seconds

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run one job under a lease."""
        try:
            self._execute_job(job, queue)
        except OutOfMemoryError:
            # Nothing can be written of its outcome. Its record, if there is one, is; the lease runs out.
            logger.warning("%s: %s", job.description, REDIS_IS_FULL)
            self._state = "idle"

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """RQ's in one round trip, and a full Redis must not end the worker over it."""
        if pipeline is not None:
            super().heartbeat(timeout, pipeline)
            return
        with contextlib.suppress(OutOfMemoryError), self.connection.pipeline() as own:
            super().heartbeat(timeout, own)
            own.execute()

    def _execute_job(self, job: Job, queue: Queue) -> None:
        # Asleep between pop and start, for so long that others returned it.
        if self.connection.lpos(queue.intermediate_queue_key, job.id) is None:
            logger.warning("%s: another worker has it meanwhile", job.description)
            return
        job.origin = queue.name
        execution = self.prepare_execution(job)
        context = JobContext(confirm=lambda: self._confirm(job, execution))
        context.hand_back = self._context.hand_back
        self._context = context
        self._note(job, "started")
        started = time.monotonic()
        logger.info("%s: started", job.description)
        beat = Beat(
            thread=self._beats,
            connection=self._beat_redis,
            job=job,
            execution=execution,
            context=context,
            lease_seconds=self.lease_seconds,
            beat_seconds=self.beat_seconds,
            sender=lambda text: Progress(text=text, host=self.host, worker=self.name),
            each_beat=self._maintain,
        )
        with beat:
            done = self.perform_job(job, queue, execution)
        # Also what an earlier attempt left that crashed.
        if beat.published or job.retries_left != MAX_RETRIES:
            clear_progress(self.connection, queue.name, job.id)
        if done:
            logger.info("%s: done in %.1f s", job.description, time.monotonic() - started)
        # RQ tells Redis before it takes the next job.
        self._state = "idle"
        self._wait_out_trouble()
        if self.fatal or self.broken or context.hand_back:
            self.left_in_order = not self.broken
            raise StopRequested

    def _maintain(self, redis: Redis) -> None:
        """At every beat, of the worker's own thread while it computes: a sign of life, then lost jobs."""
        self.last_heartbeat = now()
        with redis.pipeline() as pipeline:
            # All of it: Redis may have been wiped.
            pipeline.hset(self.key, mapping={**self.serialize(), "state": self.get_state()})
            pipeline.expire(self.key, self.worker_ttl + 60)
            pipeline.expire(self.executions_key, self.worker_ttl + 60)
            worker_registration.register(self, pipeline)
            pipeline.execute()
        name = self.queues[0].name
        if leases_are_current(redis, name, self.lease_seconds):
            return_lost_jobs(redis, name, self.lease_seconds)

    def _confirm(self, job: Job, execution: Execution) -> None:
        if not self._holds_lease(job, execution):
            raise LeaseLostError(f"{job.description}: the lease was lost, another worker has the job")

    def _holds_lease(self, job: Job, execution: Execution) -> bool:
        key = job.started_job_registry.key
        return self.connection.zscore(key, execution.composite_key) is not None

    # Outcomes

    def _finalize_success(self, job: Job, queue: Queue, execution: Execution, return_value: Any) -> None:
        if not self._holds_lease(job, execution):
            self._drop(job, execution)
            return
        forget_events(self.connection, [job.id])
        super()._finalize_success(job, queue, execution, return_value)

    def _finalize_failure(
        self,
        job: Job,
        queue: Queue,
        execution: Execution,
        exc_info: tuple[type[BaseException] | None, BaseException | None, TracebackType | None],
    ) -> None:
        error = exc_info[1]
        if not self._holds_lease(job, execution):
            self._drop(job, execution)
            return
        self._in_trouble = isinstance(error, NOT_THE_JOBS_FAULT)
        if isinstance(error, (HandBackError, *NOT_ON_THIS_MACHINE, *NOT_THE_JOBS_FAULT)):
            self._hand_back(job, queue, execution, error)
            return
        if isinstance(error, HOPELESS):
            job.retries_left = None
        text = str(error) if isinstance(error, BitfleetError) else traceback_text(error)
        self._note(job, "failed", text)
        super()._finalize_failure(job, queue, execution, exc_info)
        self.broken = is_metal_error(error)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """One line for an error that is understood, all of it for the others."""
        error = exc_info[1]
        left = f"{job.retries_left} tries left" if job.retries_left else "no tries left"
        known = isinstance(error, BitfleetError)
        logger.error("%s failed (%s): %s", job.description, left, error if known else traceback_text(error))

    def _drop(self, job: Job, execution: Execution) -> None:
        logger.warning("%s: the lease was lost while computing; the result is dropped", job.description)
        with self.connection.pipeline() as pipeline:
            self.cleanup_execution(job, pipeline=pipeline, execution=execution)
            pipeline.execute()

    def _hand_back(self, job: Job, queue: Queue, execution: Execution, error: BaseException) -> None:
        if isinstance(error, NOT_ON_THIS_MACHINE):
            self.fatal = error
        logger.warning("%s: handed back to the queue (%s)", job.description, error)
        self._note(job, "handed back", str(error))
        with self.connection.pipeline() as pipeline:
            self.cleanup_execution(job, pipeline=pipeline, execution=execution)
            job.set_status(JobStatus.QUEUED, pipeline=pipeline)
            queue.push_job_id(job.id, pipeline=pipeline, at_front=True)
            pipeline.execute()

    def _wait_out_trouble(self) -> None:
        deadline = time.monotonic() + (TROUBLE_SECONDS if self._in_trouble else 0)
        self._in_trouble = False
        while time.monotonic() < deadline and not self._stop_requested:
            time.sleep(0.1)

    def _note(self, job: Job, outcome: Any, detail: str = "") -> None:
        event = Event(outcome=outcome, host=self.host, worker=self.name, detail=detail)
        add_event(self.connection, job.id, event)

    # Stopping

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """First signal: finish the job, then leave."""
        if self.get_state() == "busy":
            logger.warning("stopping after this job; once more hands it back now")
        signal.signal(signal.SIGINT, self.request_force_stop)
        signal.signal(signal.SIGTERM, self.request_force_stop)
        self._stop_requested = self.left_in_order = True
        if self.get_state() != "busy":
            raise StopRequested

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """Second signal: hand the job back at the next step."""
        if not self._context.hand_back:
            logger.warning("handing the job back to the queue")
        self._context.hand_back = True

    # What RQ does and we do otherwise

    def clean_registries(self) -> None:
        """See worker.jobs.maintenance; called while there is no job to do."""
        self._maintain_now()
        if self._hedge:
            self._hedge.take_copy()

    def _maintain_when_due(self) -> None:
        if self.should_run_maintenance_tasks:
            self._maintain_now()

    def _maintain_now(self) -> None:
        with contextlib.suppress(OutOfMemoryError):
            self._maintain(self.connection)
        self.last_cleaned_at = now()  # type: ignore[assignment]

    def clean_group_registries(self) -> None:
        """No groups here."""

    def check_for_suspension(self, burst: bool) -> None:
        """Nobody suspends workers through Redis."""

    def subscribe(self) -> None:
        """No commands are taken from Redis."""

    def unsubscribe(self) -> None:
        """Nothing was subscribed to."""
