"""The RQ worker: a SimpleWorker (MLX is not fork-safe) whose jobs are leased, fenced and handed back."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import FrameType, TracebackType
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import OutOfMemoryError, RedisError
from rq import SimpleWorker, worker_registration
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.utils import now, utcformat

from shared.errors import BitfleetError, LeaseLostError
from shared.jobs.history import Event, Outcome, Progress, clear_progress, forget_events, push_event
from shared.jobs.redis_time import redis_time
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue
from shared.kinds.kind import Task
from worker.jobs.choice import choosing_queue
from worker.jobs.failures import (
    HOPELESS,
    NOT_THE_JOBS_FAULT,
    REDIS_IS_FULL,
    explain,
    is_metal_error,
    is_the_machines,
    traceback_text,
)
from worker.jobs.hedge import Hedge
from worker.jobs.job_context import HandBackError, JobContext
from worker.jobs.lease import Beat, BeatThread
from worker.jobs.lease_scripts import take_job
from worker.jobs.maintenance import in_grace_period, return_lost_jobs
from worker.jobs.outcome import end_attempt, hand_back
from worker.jobs.presence import HOST_FIELD, able_hosts
from worker.jobs.set_aside import SetAside
from worker.jobs.streak import FailureStreaks
from worker.jobs.verdict import Verdict

logger = logging.getLogger("bitfleet.worker")

TaskFunction = Callable[[Task, JobContext], dict[str, Any]]

FULL_POLL_SECONDS = 2.0
TROUBLE_SECONDS = 10.0
LEAVE_SECONDS = 1.0


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
        start_id: str = "",
        alone: bool = False,
        when_idle: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is taken from the queue yet.

        Args:
            queue_name: the one queue that it serves.
            connection: of the main thread.
            beat_connection: of the beat's thread.
            functions: name to what runs such tasks.
            host: this machine's name.
            name: of the worker in Redis.
            lease_seconds: after which a silent worker's job is returned.
            beat_seconds: between two signs of life.
            hedge: take second copies of slow jobs when idle.
            start_id: of the `worker start`, whose processes share what they set aside.
            alone: no other machine could do what this one can't, so leave over it.
            when_idle: called now and then while there is no job to do.
        """
        self.lease_seconds = lease_seconds
        self.beat_seconds = beat_seconds
        self.host = host
        self._queue = TaskQueue(queue_name, connection)
        self.fatal: str | None = None
        """Why this machine can't go on, when it can't."""
        self.exited_cleanly = False
        """Whether it left because it was told to, or because nothing was left to do.

        RQ's loop also ends, without an exception, over an error in itself.
        """
        self.broken = False
        """Whether the GPU is in a state that only a new process gets rid of."""
        self._in_trouble = False
        self._leaving = False
        self._dropped = False
        self._beats = BeatThread()
        self._beat_redis = beat_connection
        self._functions = functions
        self._alone = alone
        self._when_idle = when_idle
        self.set_aside = SetAside(connection, queue_name, host=host, start_id=start_id or name)
        self._streaks = FailureStreaks()
        self._maintained: float | None = None
        """When, on the monotonic clock."""
        queue_class = choosing_queue(host, self.set_aside.prefixes)
        self._context = JobContext(confirm=lambda: None)
        super().__init__(
            [queue_class(queue_name, connection)],
            name=name,
            connection=connection,
            job_class=self._bound_job_class(),
            queue_class=queue_class,
            serializer=JSONSerializer,
            worker_ttl=25,
            # A dead machine's job is found after a lease and at most this.
            maintenance_interval=max(1, int(beat_seconds / 4)),
        )
        self.log_job_description = False
        self.log_result_lifespan = False
        self._hedge: Hedge | None = None
        if hedge:
            self._hedge = Hedge(
                self._queue,
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
                self.exited_cleanly = self.exited_cleanly or found is None
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
            self.executions.clear()
            self._state = "idle"

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

    def _execute_job(self, job: Job, queue: Queue) -> None:
        execution = self._take(job, queue)
        if execution is None:
            return
        context = JobContext(confirm=lambda: self._confirm(job, execution))
        context.hand_back = self._context.hand_back
        self._context = context
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
        self._dropped = False
        with beat:
            done = self.perform_job(job, queue, execution) and not self._dropped
        if beat.published:
            clear_progress(self.connection, queue.name, job.id)
        if done:
            self._streaks.done(job.id)
            logger.info("%s: done in %.1f s", job.description, time.monotonic() - started)
        # RQ tells Redis before it takes the next job.
        self._state = "idle"
        self._wait_out_trouble()
        if self.fatal or self.broken or context.hand_back:
            self.exited_cleanly = not self.broken
            raise StopRequested

    def _take(self, job: Job, queue: Queue) -> Execution | None:
        """Start a job that waits, in one step: out of the queue, leased, STARTED, with a line in its history.

        None when it does not wait any more: another worker was quicker, or this machine slept meanwhile.
        """
        job.origin = queue.name
        # From here on a signal lets the job end.
        self._state = "busy"
        with self.connection.pipeline() as then:
            execution = Execution.create(job, self.lease_seconds, then, worker_name=self.name)
            job.prepare_for_execution(self.name, then)
            then.persist(job.key)
            self.set_state("busy", then)
            self.heartbeat(pipeline=then)
            # All machines compare it with their own; so it is Redis' time.
            started = datetime.fromtimestamp(redis_time(self.connection), UTC)
            then.hset(job.key, "started_at", utcformat(started))
            push_event(then, job.id, self._event("started"))
            # Of an earlier attempt that crashed.
            clear_progress(then, queue.name, job.id)
            lease, seconds = execution.composite_key, self.lease_seconds
            if not take_job(self.connection, queue, job.id, lease, seconds, then):
                self._state = "idle"
                return None
        self.executions[execution.id] = execution
        return execution

    def serialize(self) -> dict[Any, Any]:
        """What stands of this worker in Redis."""
        return super().serialize() | {HOST_FIELD: self.host}

    def prepare_job_execution(self, job: Job, remove_from_intermediate_queue: bool = False) -> None:
        """RQ writes here that the job runs; it was written when the job was taken."""

    def register_death(self) -> None:
        """Leave the list of workers, if Redis is there; else the list forgets us by itself."""
        self._leaving = True
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

    def _maintain(self, redis: Redis) -> None:
        """At every beat, of the worker's own thread while it computes: a sign of life, then lost jobs."""
        self.last_heartbeat = now()
        with redis.pipeline() as pipeline:
            # All of it: Redis may have been wiped.
            pipeline.hset(self.key, mapping=self.serialize() | {"state": self.get_state()})
            pipeline.expire(self.key, self.worker_ttl + 60)
            pipeline.expire(self.executions_key, self.worker_ttl + 60)
            worker_registration.register(self, pipeline)
            pipeline.execute()
        name = self.queues[0].name
        if not in_grace_period(redis, name, self.lease_seconds):
            return_lost_jobs(redis, name)

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
        super()._finalize_success(job, queue, execution, return_value)

    def cleanup_execution(self, job: Job, pipeline: Pipeline, execution: Execution | None = None) -> None:
        """RQ's; and in the same step, of a job that is done, forget what became of it before."""
        super().cleanup_execution(job, pipeline, execution)
        if job.get_status(refresh=False) == JobStatus.FINISHED:
            forget_events(pipeline, [job.id])

    def _finalize_failure(
        self,
        job: Job,
        queue: Queue,
        execution: Execution,
        exc_info: tuple[type[BaseException] | None, BaseException | None, TracebackType | None],
    ) -> None:
        error = exc_info[1]
        self.broken = is_metal_error(error)
        if not self._holds_lease(job, execution):
            self._drop(job, execution)
            return
        self._in_trouble = isinstance(error, NOT_THE_JOBS_FAULT)
        if isinstance(error, (HandBackError, *NOT_THE_JOBS_FAULT)):
            self._hand_back(job, execution, str(error))
        # A GPU that failed may do better in a new process, if there is nobody else to do it.
        elif error is not None and is_the_machines(error) and not (self._alone and self.broken):
            self._hand_back(job, execution, explain(error))
            self._leave_to_others(job, explain(error))
        else:
            self._fail(job, execution, error)

    def _hand_back(self, job: Job, execution: Execution, reason: str) -> None:
        event = self._event("handed back", reason)
        with self.connection.pipeline() as then:
            execution.delete(job, then)
            handed_back = hand_back(self._queue, job, execution.composite_key, event, then)
        if not handed_back:
            self._drop(job, execution)
            return
        self.executions.pop(execution.id, None)
        logger.warning("%s: handed back to the queue (%s)", job.description, reason)

    def _fail(self, job: Job, execution: Execution, error: BaseException | None) -> None:
        text = str(error) if isinstance(error, BitfleetError) else traceback_text(error)
        event, hopeless = self._event("failed", text), isinstance(error, HOPELESS)
        lease = execution.composite_key
        with self.connection.pipeline() as then:
            execution.delete(job, then)
            verdict = end_attempt(self._queue, job, lease, event, then, hopeless=hopeless)
        if verdict is None:
            self._drop(job, execution)
            return
        self.executions.pop(execution.id, None)
        logger.error("%s failed (%s): %s", job.description, _described(verdict), text.rstrip())
        pause = None if hopeless else self._streaks.failed(job.id)
        if pause and able_hosts(self._queue, job.id) - {self.host}:
            reason = f"several in a row failed here, the last one: {_last_line(text)}"
            self.set_aside.add(job.id, reason, pause)

    def _leave_to_others(self, job: Job, reason: str) -> None:
        if self._alone:
            self.fatal = reason
        else:
            self.set_aside.add(job.id, reason)

    def _drop(self, job: Job, execution: Execution) -> None:
        self._dropped = True
        logger.warning("%s: the lease was lost while computing; the result is dropped", job.description)
        with self.connection.pipeline() as pipeline:
            self.cleanup_execution(job, pipeline=pipeline, execution=execution)
            pipeline.execute()

    def _wait_out_trouble(self) -> None:
        deadline = time.monotonic() + (TROUBLE_SECONDS if self._in_trouble else 0)
        self._in_trouble = False
        while time.monotonic() < deadline and not self._stop_requested:
            time.sleep(0.1)

    def _event(self, outcome: Outcome, detail: str = "") -> Event:
        return Event(outcome=outcome, host=self.host, worker=self.name, detail=detail)

    # Stopping

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

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """Second signal: hand the job back at the next step."""
        if not self._context.hand_back:
            logger.warning("handing the job back to the queue")
        self._context.hand_back = True
        if self.get_state() != "busy" and not self._leaving:
            # The first signal's exception was lost where it was raised.
            raise StopRequested

    # What RQ does and we do otherwise

    def clean_registries(self) -> None:
        """See worker.jobs.maintenance; called while there is no job to do."""
        self._maintain_now()
        self._when_idle()
        # A copy might be of what is set aside here.
        if self._hedge and not self.set_aside.prefixes():
            self._hedge.take_copy()

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """RQ's, by a clock that nobody sets."""
        last = self._maintained
        return last is None or time.monotonic() - last > self.maintenance_interval

    def _maintain_when_due(self) -> None:
        if self.should_run_maintenance_tasks:
            self._maintain_now()

    def _maintain_now(self) -> None:
        with contextlib.suppress(OutOfMemoryError):
            self._maintain(self.connection)
        self._maintained = time.monotonic()

    def clean_group_registries(self) -> None:
        """No groups here."""

    def check_for_suspension(self, burst: bool) -> None:
        """Nobody suspends workers through Redis."""

    def subscribe(self) -> None:
        """No commands are taken from Redis."""

    def unsubscribe(self) -> None:
        """Nothing was subscribed to."""


def _described(verdict: Verdict) -> str:
    if verdict.give_up:
        return "given up"
    where = ", elsewhere if possible" if verdict.avoid else ""
    return f"another try in {verdict.wait_seconds:.0f} s{where}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
