"""The RQ that LeaseWorker, TaskQueue and TaskJob were written against: another is read before it is used."""

import inspect
import re
from typing import Any

import pytest
from rq import SimpleWorker
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry

from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue
from worker.jobs.lease_worker import LeaseWorker

CLASSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        SimpleWorker,
        Queue,
        Job,
        Execution,
        StartedJobRegistry,
        FailedJobRegistry,
        FinishedJobRegistry,
    )
}
# What is overridden or called.
SIGNATURES = {
    "SimpleWorker.__init__": (
        "self queues name default_result_ttl connection exception_handlers maintenance_interval "
        "default_worker_ttl worker_ttl job_class queue_class log_job_description "
        "job_monitoring_interval disable_default_exception_handler prepare_for_work serializer "
        "work_horse_killed_handler"
    ),
    "SimpleWorker.work": (
        "self burst logging_level date_format log_format max_jobs max_idle_time with_scheduler "
        "dequeue_strategy"
    ),
    "SimpleWorker.execute_job": "self job queue",
    "SimpleWorker.dequeue_job_and_maintain_ttl": "self timeout max_idle_time",
    "SimpleWorker.get_heartbeat_ttl": "self job working_time",
    "SimpleWorker._finalize_success": "self job queue execution return_value",
    "SimpleWorker._finalize_failure": "self job queue execution exc_info",
    "SimpleWorker.handle_exception": "self job exc_info",
    "SimpleWorker.check_for_suspension": "self burst",
    "SimpleWorker.heartbeat": "self timeout pipeline",
    "SimpleWorker.request_stop": "self signum frame",
    "SimpleWorker.request_force_stop": "self signum frame",
    "SimpleWorker.clean_registries": "self",
    "SimpleWorker.clean_group_registries": "self",
    "SimpleWorker.subscribe": "self",
    "SimpleWorker.unsubscribe": "self",
    "SimpleWorker.prepare_job_execution": "self job remove_from_intermediate_queue",
    "SimpleWorker.register_death": "self",
    "SimpleWorker.perform_job": "self job queue execution",
    "SimpleWorker.cleanup_execution": "self job pipeline execution",
    "SimpleWorker.set_state": "self state pipeline",
    "SimpleWorker.get_state": "self",
    "SimpleWorker.serialize": "self",
    "Queue.__init__": (
        "self name connection default_timeout is_async job_class serializer death_penalty_class kwargs"
    ),
    "Queue.lmove": "connection queue_key timeout",
    "Queue._fetch_dequeued_job": "connection queue_key job_id job_class serializer death_penalty_class",
    "Queue.move_dependents_to_ready": "self job pipeline exclude_job_id refresh_job_status",
    "Queue.enqueue_dependents": "self job exclude_job_id refresh_job_status",
    "Queue.enqueue_many": "self job_datas pipeline group_id",
    "Queue.prepare_data": (
        "func args kwargs timeout result_ttl ttl failure_ttl description depends_on job_id at_front "
        "meta retry on_success on_failure on_stopped repeat webhooks"
    ),
    "Queue.push_job_id": "self job_id pipeline at_front",
    "Job.__init__": "self id connection serializer",
    "Job.restore": "self raw_data",
    "Job.refresh": "self",
    "Job._deserialize_data": "self",
    "Job._execute": "self",
    "Job.prepare_for_execution": "self worker_name pipeline",
    "Job.retry": "self queue pipeline",
    "Job.set_status": "self status pipeline",
    "Job.key_for": "job_id",
    "Job.fetch": "id connection serializer",
    "Execution.create": "job ttl pipeline worker_name",
    "Execution.heartbeat": "self started_job_registry ttl pipeline",
    "FailedJobRegistry.get_job_ids": "self start end desc cleanup",
    "FailedJobRegistry.cleanup": "self timestamp exception_handlers",
    "FinishedJobRegistry.cleanup": "self timestamp exception_handlers",
}
# All that RQ believes of a job's hash: TaskJob lets through what is harmless, so a new one must be judged.
HASH_FIELDS = """
allow_dependency_failures created_at data dependency_id dependency_ids description ended_at
enqueue_at_front enqueue_at_front_on_retry enqueued_at exc_info failure_callback_name
failure_callback_timeout failure_ttl group_id last_heartbeat meta number_of_retries origin
rate_limit_concurrency rate_limit_key repeat_intervals repeats_left result result_ttl retries_left
retry_intervals started_at status stopped_callback_name stopped_callback_timeout
success_callback_name success_callback_timeout timeout ttl webhooks worker_name
"""


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    kind, _, method = name.partition(".")
    parameters = inspect.signature(getattr(CLASSES[kind], method)).parameters
    assert " ".join(parameters) == SIGNATURES[name]


@pytest.mark.parametrize(
    ("ours", "theirs"), [(LeaseWorker, SimpleWorker), (TaskQueue, Queue), (TaskJob, Job)]
)
def test_every_override_is_pinned(ours: type, theirs: type) -> None:
    for name, value in vars(ours).items():
        if inspect.isfunction(inspect.unwrap(getattr(value, "__func__", value))) and hasattr(theirs, name):
            assert f"{theirs.__name__}.{name}" in SIGNATURES


def test_fields_of_a_jobs_hash() -> None:
    read = set(re.findall(r"obj(?:\.get\(|\[)'(\w+)'", inspect.getsource(Job.restore)))
    assert read == set(HASH_FIELDS.split())


def test_the_time_to_wait_for_a_job_is_ours_to_choose() -> None:
    assert isinstance(inspect.getattr_static(SimpleWorker, "dequeue_timeout"), property)
    assert "self.dequeue_timeout" in inspect.getsource(SimpleWorker.work)


def test_any_exception_of_a_job_reaches_the_outcome() -> None:
    """HandBackError is no Exception: RQ's bare `except` is what it relies on."""
    assert "except:  # NOQA" in inspect.getsource(SimpleWorker.perform_job)
