"""One attempt at a job: the lease that it holds, and how it ends when the job is not done."""

import logging

from redis import Redis
from rq.executions import Execution
from rq.job import Job

from shared.errors import BitfleetError, LeaseLostError
from shared.jobs.history import Event, Outcome
from shared.jobs.task_queue import TaskQueue
from shared.jobs.workers import Place
from worker.jobs.failures import HOPELESS, traceback_text
from worker.jobs.outcome import end_attempt, hand_back
from worker.jobs.verdict import Verdict

logger = logging.getLogger("bitfleet.worker")


class Attempt:
    """What one worker does with one job between taking it and its end."""

    def __init__(
        self, queue: TaskQueue, job: Job, execution: Execution, *, place: Place, worker: str
    ) -> None:
        self.execution = execution
        self.dropped = False
        """Whether another worker has the job by now."""
        self._redis: Redis = queue.connection
        self._queue = queue
        self._job = job
        self._place = place
        self._worker = worker

    def holds_lease(self) -> bool:
        """Ask Redis whether the job is still ours."""
        key = self._queue.started_job_registry.key
        return self._redis.zscore(key, self.execution.composite_key) is not None

    def confirm(self) -> None:
        """Go on only with the lease.

        Raises:
            LeaseLostError: another worker has the job.
        """
        if not self.holds_lease():
            raise LeaseLostError(
                f"{self._job.description}: the lease was lost, another worker has the job or it was cancelled"
            )

    def hand_back(self, reason: str) -> None:
        """Put the job back at the front of the queue: it is not to blame."""
        event = self._event("handed back", reason)
        with self._redis.pipeline() as then:
            self.execution.delete(self._job, then)
            handed_back = hand_back(self._queue, self._job, self.execution.composite_key, event, then)
        if not handed_back:
            self.drop()
            return
        logger.warning("%s: handed back to the queue (%s)", self._job.description, reason)

    def fail(self, error: BaseException | None) -> None:
        """Note the error in the job's history, which decides what follows."""
        text = str(error) if isinstance(error, BitfleetError) else traceback_text(error)
        event = self._event("failed", text)
        lease, hopeless = self.execution.composite_key, isinstance(error, HOPELESS)
        with self._redis.pipeline() as then:
            self.execution.delete(self._job, then)
            verdict = end_attempt(self._queue, self._job, lease, event, then, hopeless=hopeless)
        if verdict is None:
            self.drop()
            return
        logger.error("%s failed (%s): %s", self._job.description, _described(verdict), text.rstrip())

    def _event(self, outcome: Outcome, detail: str) -> Event:
        host, start = self._place
        return Event(outcome=outcome, host=host, start=start, worker=self._worker, detail=detail)

    def drop(self) -> None:
        """Leave the job to the worker that has it now."""
        self.dropped = True
        logger.warning("%s: the lease was lost while computing; the result is dropped", self._job.description)
        with self._redis.pipeline() as pipeline:
            self.execution.delete(self._job, pipeline)
            pipeline.execute()


def _described(verdict: Verdict) -> str:
    if verdict.give_up:
        return "given up"
    where = ", elsewhere if possible" if verdict.avoid else ""
    return f"another try in {verdict.wait_seconds:.0f} s{where}"
