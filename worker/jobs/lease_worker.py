"""The RQ worker: a SimpleWorker (MLX is not fork-safe) whose jobs are leased, fenced and handed back."""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import FrameType, MappingProxyType, TracebackType
from typing import Any, cast

import msgspec
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import OutOfMemoryError
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.utils import utcformat

from shared.jobs.asides import kind_of_job
from shared.jobs.history import Event, Progress, clear_progress, forget_events, push_event
from shared.jobs.orders import is_paused
from shared.jobs.redis_time import redis_time
from shared.jobs.tally import Tally, encode_tally
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue, runs_key
from shared.jobs.workers import (
    HOST_FIELD,
    START_FIELD,
    TALLY_FIELD,
    VERSIONS_FIELD,
    Place,
    able_places,
)
from shared.kinds.kind import Task
from shared.kinds.registry import kind_name
from worker.jobs.attempt import Attempt
from worker.jobs.choice import choosing_queue
from worker.jobs.failures import (
    HOPELESS,
    NOT_THE_JOBS_FAULT,
    REDIS_IS_FULL,
    explain,
    is_metal_error,
    is_the_machines,
)
from worker.jobs.hedge import Hedge
from worker.jobs.job_context import HandBackError, JobContext, NoRoomError
from worker.jobs.lean_worker import LeanWorker
from worker.jobs.lease import Beat, BeatThread
from worker.jobs.lease_scripts import take_job
from worker.jobs.maintenance import in_grace_period, return_lost_jobs, tidy
from worker.jobs.set_aside import SetAside
from worker.jobs.streak import FailureStreaks

logger = logging.getLogger("bitfleet.worker")

TaskFunction = Callable[[Task, JobContext], dict[str, Any]]

_NO_VERSIONS: Mapping[str, str] = MappingProxyType({})
TROUBLE_SECONDS = 10.0
NO_ROOM_SECONDS = 30.0
"""For so long other runs are worked for when the store has no room for one."""


class LeaseWorker(LeanWorker):
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
        versions: Mapping[str, str] = _NO_VERSIONS,
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
            versions: of this program and its libraries, for whoever asks who is at work.
        """
        self.lease_seconds = lease_seconds
        self.beat_seconds = beat_seconds
        self.host = host
        self._queue = TaskQueue(queue_name, connection)
        self.fatal: str | None = None
        """Why this machine can't go on, when it can't."""
        self.broken = False
        """Whether the GPU is in a state that only a new process gets rid of."""
        self.tally = Tally()
        """What this process has done."""
        self._versions = msgspec.json.encode(dict(versions))
        self._waiting: int | None = None
        """How many jobs waited at the last sign of life."""
        self._in_trouble = False
        self._trouble_since: float | None = None
        """Since when the store or Redis failed each job, on the monotonic clock."""
        self._attempt: Attempt
        """The latest."""
        self._beats = BeatThread()
        self._beat_redis = beat_connection
        self._functions = functions
        self._alone = alone
        self._when_idle = when_idle
        self._place = Place(host, start_id or name)
        self.set_aside = SetAside(connection, queue_name, host=host, start_id=self._place.start_id)
        self._streaks = FailureStreaks()
        queue_class = choosing_queue(self._place, self.set_aside.prefixes)
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
                host=host,
                worker=self.name,
                min_seconds=beat_seconds / 4,
                each_look=self._maintain_when_due,
            )

    def _bound_job_class(self) -> type[TaskJob]:
        def bind(function: TaskFunction) -> Callable[[Task], dict[str, Any]]:
            return lambda task: function(task, self._context)

        table = {name: bind(function) for name, function in self._functions.items()}
        return type("BoundTaskJob", (TaskJob,), {"functions": table})

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

    def _execute_job(self, job: Job, queue: Queue) -> None:
        execution = self._take(job, queue)
        if execution is None:
            return
        self._attempt = Attempt(self._queue, job, execution, place=self._place, worker=self.name)
        context = JobContext(
            confirm=self._attempt.confirm,
            others_wait=lambda: self._others_wait(job),
            tell_speed=self._tell_speed,
        )
        context.hand_back = self._context.hand_back
        self._context = context
        started = time.monotonic()
        logger.info("%s: started (%s)", job.description, self._whereabouts(job), extra=_extra(job, "started"))
        with self._beat(job, execution) as beat:
            done = self.perform_job(job, queue, execution) and not self._attempt.dropped
        self.executions.pop(execution.id, None)
        if beat.published:
            clear_progress(self.connection, queue.name, job.id)
        if done:
            self._note_done(job, time.monotonic() - started)
        elif self._attempt.dropped:
            self.tally = self.tally.with_lost()
        # RQ tells Redis before it takes the next job.
        self._state = "idle"
        self._wait_out_trouble()
        if self.fatal or self.broken or context.hand_back:
            self.exited_cleanly = not self.broken
            raise StopRequested

    def _note_done(self, job: Job, seconds: float) -> None:
        self._streaks.done(job.id)
        self.tally = self.tally.with_done(kind_name(job.id), seconds)
        if self._trouble_since is not None:
            logger.warning(
                "Redis and the store answer again, after %.0f s", time.monotonic() - self._trouble_since
            )
            self._trouble_since = None
        extra = _extra(job, "done") | {"seconds": round(seconds, 3)}
        logger.info("%s: done in %.1f s (%s)", job.description, seconds, self._whereabouts(job), extra=extra)

    def _tell_speed(self, flops_per_second: float) -> None:
        self.tally = self.tally.with_speed(flops_per_second)
        self.connection.hset(self.key, TALLY_FIELD, encode_tally(self.tally))

    def _whereabouts(self, job: Job) -> str:
        """The task's run, and how much is done and left, as far as this worker knows."""
        done = f"{self.tally.tasks} done here"
        left = "" if self._waiting is None else f", {self._waiting} wait"
        return f"{kind_name(job.id)} {_group(job.id)}, {done}{left}"

    def _beat(self, job: Job, execution: Execution) -> Beat:
        return Beat(
            thread=self._beats,
            connection=self._beat_redis,
            job=job,
            execution=execution,
            context=self._context,
            lease_seconds=self.lease_seconds,
            beat_seconds=self.beat_seconds,
            sender=lambda text: Progress(text=text, host=self.host, worker=self.name),
            each_beat=self._maintain,
        )

    def _take(self, job: Job, queue: Queue) -> Execution | None:
        """Start a job that waits, in one step: out of the queue, leased, STARTED, with a line in its history.

        None when it does not wait any more: another worker was quicker, or this machine slept meanwhile.
        """
        job.origin = queue.name
        # From here on a signal lets the job end.
        self._state = "busy"
        # All machines compare it with their own; so it is Redis' time.
        started = datetime.fromtimestamp(redis_time(self.connection), UTC)
        event = Event(outcome="started", host=self.host, start=self._place.start_id, worker=self.name)
        with self.connection.pipeline() as then:
            execution = Execution.create(job, self.lease_seconds, then, worker_name=self.name)
            job.prepare_for_execution(self.name, then)
            then.hset(job.key, "started_at", utcformat(started))
            then.persist(job.key)
            then.hset(self.key, TALLY_FIELD, encode_tally(self.tally))
            self.set_state("busy", then)
            self.heartbeat(pipeline=then)
            push_event(then, job.id, event)
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
        return super().serialize() | {
            HOST_FIELD: self.host,
            START_FIELD: self._place.start_id,
            TALLY_FIELD: encode_tally(self.tally),
            VERSIONS_FIELD: self._versions,
        }

    def _maintain(self, redis: Redis) -> None:
        """At every beat, of the worker's own thread while it computes: a sign of life, then lost jobs."""
        self.say_alive(redis)
        name = self.queues[0].name
        self._waiting = redis.llen(self._queue.key)
        if not in_grace_period(redis, name, self.lease_seconds):
            return_lost_jobs(redis, name)
        tidy(redis, name)

    # Outcomes

    def _finalize_success(self, job: Job, queue: Queue, execution: Execution, return_value: Any) -> None:
        if self._attempt.holds_lease():
            super()._finalize_success(job, queue, execution, return_value)
        else:
            self._attempt.drop()

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
        if not self._attempt.holds_lease():
            self._attempt.drop()
            return
        self._in_trouble = isinstance(error, NOT_THE_JOBS_FAULT)
        if error is not None and self._in_trouble and self._trouble_since is None:
            self._trouble_since = time.monotonic()
            logger.warning(
                "Redis or the store fails: %s; no task is lost, this worker tries on", explain(error)
            )
        if isinstance(error, (HandBackError, *NOT_THE_JOBS_FAULT)):
            self._attempt.hand_back(str(error))
            if isinstance(error, NoRoomError):
                self.set_aside.add(job.id, str(error), NO_ROOM_SECONDS)
        # A GPU that failed may do better in a new process, if there is nobody else to do it.
        elif error is not None and is_the_machines(error) and not (self._alone and self.broken):
            self._attempt.hand_back(explain(error))
            self._leave_to_others(job, explain(error))
        else:
            self._attempt.fail(error)
            self.tally = self.tally.with_failed()
            if not isinstance(error, HOPELESS):
                self._look_at_myself(job, error)

    def _others_wait(self, job: Job) -> bool:
        runs = cast(set[bytes], self.connection.smembers(runs_key(self._queue.name)))
        mine = {kind_of_job(job.id), *self.set_aside.prefixes()}
        return bool({run.decode("utf-8", "replace") for run in runs} - mine)

    def _look_at_myself(self, job: Job, error: BaseException | None) -> None:
        """Leave such tasks to others if several of them failed here in a row, and there are others."""
        pause = self._streaks.failed(job.id)
        if pause and able_places(self._queue, kind_of_job(job.id)) - {self._place}:
            last = (str(error).strip().splitlines() or [""])[0]
            reason = f"several in a row failed here, the last one: {type(error).__name__}: {last}"
            self.set_aside.add(job.id, reason, pause)

    def _leave_to_others(self, job: Job, reason: str) -> None:
        if self._alone:
            self.fatal = reason
        else:
            self.set_aside.add(job.id, reason)

    def _wait_out_trouble(self) -> None:
        deadline = time.monotonic() + (TROUBLE_SECONDS if self._in_trouble else 0)
        self._in_trouble = False
        while time.monotonic() < deadline and not self._stop_requested:
            time.sleep(0.1)

    # Stopping

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """Second signal: hand the job back at the next step."""
        if not self._context.hand_back:
            logger.warning("handing the job back to the queue")
        self._context.hand_back = True
        if self.get_state() != "busy" and not self.leaving:
            # The first signal's exception was lost where it was raised.
            raise StopRequested

    # What RQ does and we do otherwise

    def clean_registries(self) -> None:
        """See worker.jobs.maintenance; called while there is no job to do."""
        self._maintain_now()
        self._when_idle()
        # A copy might be of what is set aside here.
        if self._hedge and not self.set_aside.prefixes() and not is_paused(self.connection, self._queue.name):
            self._hedge.take_copy()

    def _maintain_when_due(self) -> None:
        if self.should_run_maintenance_tasks:
            self._maintain_now()

    def _maintain_now(self) -> None:
        with contextlib.suppress(OutOfMemoryError):
            self._maintain(self.connection)
        self._maintained = time.monotonic()


def _group(job_id: str) -> str:
    """The run, or the request, that a job belongs to."""
    return kind_of_job(job_id).rstrip("-").partition("-")[2]


def _extra(job: Job, event: str) -> dict[str, Any]:
    """What a log in JSON says beside the line."""
    return {"event": event, "task": job.id, "kind": kind_name(job.id), "group": _group(job.id)}
