"""Forget a run: nothing of it stays in Redis or in the store. Its calibration folder is not touched."""

from collections.abc import Sequence

from producer.fleet import Fleet
from producer.jobs.claims import read_claims, unclaim
from producer.steering.runs import RunContent
from shared.jobs.asides import kind_of_job
from shared.jobs.task_queue import TaskQueue, given_up_key, queue_name

BATCH = 2000


def forget(fleet: Fleet, run: RunContent, others: Sequence[RunContent]) -> None:
    """Delete a run's jobs, histories, records, shards and blobs, but for blobs that `others` need, too.

    Jobs go first, so that no worker begins one anew; a worker that runs one drops it at its next beat. Ended
    in between, the same call goes on.
    """
    queue = TaskQueue(queue_name(fleet.store.id), fleet.connection)
    _forget_jobs(queue, set(run.namespaces))
    for namespace in run.namespaces:
        fleet.store.discard_namespace(namespace)
    shared = {blob for other in others if other.run != run.run for blob in other.blobs}
    # One that lists others last: as long as it is there, they can be found.
    for blob in reversed(run.blobs):
        if blob not in shared:
            fleet.store.discard_blob(blob)
    fleet.store.recount(run.namespaces)
    claims = read_claims(fleet.connection, queue.name)
    unclaim(fleet.connection, queue.name, [kind for kind in claims if _namespace(kind) in run.namespaces])


def _forget_jobs(queue: TaskQueue, namespaces: set[str]) -> None:
    finished = set(queue.finished_job_registry.get_job_ids(cleanup=False))
    known = queue.in_flight().ids | queue.failed_ids() | finished
    ids = sorted(task_id for task_id in known if _namespace(kind_of_job(task_id)) in namespaces)
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        queue.withdraw(batch)
        with queue.connection.pipeline() as pipeline:
            for key in (
                queue.failed_job_registry.key,
                queue.finished_job_registry.key,
                given_up_key(queue.name),
            ):
                pipeline.zrem(key, *batch)
            pipeline.execute()


def _namespace(kind: str) -> str:
    return kind.split("-")[1] if kind.count("-") > 1 else ""
