"""What is written of an attempt that did not succeed, in one step with the end of its lease.

The job goes back to the front of its queue; or waits for its next try among the delayed jobs, from which
whichever worker looks for a job next puts those that are due back into the queue; or has failed for good.
"""

import math

from redis.client import Pipeline
from rq.job import Job, JobStatus
from rq.job_lifecycle import record_job_failure

from shared.jobs.asides import kind_of_job
from shared.jobs.history import Event, push_event, read_events
from shared.jobs.redis_time import redis_time
from shared.jobs.task_job import FAILURE_TTL
from shared.jobs.task_queue import TaskQueue, avoid_key, given_up_key
from shared.jobs.workers import able_places
from worker.jobs.lease_scripts import end_lease
from worker.jobs.verdict import PREFERENCE_SECONDS, Verdict, judge


def hand_back(
    queue: TaskQueue, job: Job, lease: bytes | str, event: Event, then: Pipeline, *, over: bool = False
) -> bool:
    """Put a job back at the front of its queue; False, with nothing done, if its lease is gone.

    Args:
        queue: its queue.
        job: the job.
        lease: the one that ends.
        event: the line for its history.
        then: commands that are run in the same step.
        over: whether the lease must have run out.
    """
    push_event(then, job.id, event)
    _put_back(queue, job, Verdict(), then)
    return end_lease(queue.connection, queue.started_job_registry.key, lease, then, over=over)


def end_attempt(
    queue: TaskQueue,
    job: Job,
    lease: bytes | str,
    event: Event,
    then: Pipeline,
    *,
    over: bool = False,
    hopeless: bool = False,
) -> Verdict | None:
    """Let the job's history, with this last `event`, decide over it.

    None, with nothing done, if its lease is gone. `hopeless` gives it up at once; the other arguments are
    those of `hand_back`.
    """
    events = [*read_events(queue.connection, job.id), event]
    verdict = Verdict(give_up=True) if hopeless else judge(events, able_places(queue, kind_of_job(job.id)))
    push_event(then, job.id, event)
    if verdict.give_up:
        _give_up(queue, job, event.detail, then)
    else:
        _put_back(queue, job, verdict, then)
    if not end_lease(queue.connection, queue.started_job_registry.key, lease, then, over=over):
        return None
    return verdict


def _put_back(queue: TaskQueue, job: Job, verdict: Verdict, then: Pipeline) -> None:
    job.set_status(JobStatus.QUEUED, pipeline=then)
    if verdict.avoid:
        seconds = math.ceil(verdict.wait_seconds + PREFERENCE_SECONDS)
        then.set(avoid_key(job.id), "\n".join(sorted(verdict.avoid)), ex=seconds)
    if verdict.wait_seconds:
        then.zadd(queue.delayed_key, {job.id: redis_time(queue.connection) + verdict.wait_seconds})
    else:
        queue.push_job_id(job.id, pipeline=then, at_front=True)


def _give_up(queue: TaskQueue, job: Job, reason: str, then: Pipeline) -> None:
    # Filed under our queue, whatever its hash says.
    job.origin = queue.name
    record_job_failure(job, reason, then)
    # RQ wrote a time by this machine's clock.
    ends = redis_time(queue.connection) + FAILURE_TTL
    for key in (queue.failed_job_registry.key, given_up_key(queue.name)):
        then.zadd(key, {job.id: ends})
