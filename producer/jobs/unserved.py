"""Which waiting tasks no connected worker can do, and why; and who takes jobs without being able to."""

from collections import Counter
from collections.abc import Iterator

from redis import Redis

from shared.jobs.asides import describe_kind, kind_of_job
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.jobs.workers import WorkerInfo, able_places, asides_of


def unserved(connection: Redis, store_id: str, workers: list[WorkerInfo]) -> Iterator[str]:
    """Yield a line for each kind of waiting tasks that no connected worker can do."""
    if not any(worker.start_id is not None for worker in workers):
        return
    queue = TaskQueue(queue_name(store_id), connection)
    for kind, count in sorted(Counter(map(kind_of_job, queue.in_flight().queued)).items()):
        asides = asides_of(queue, kind)
        if not asides or able_places(queue, kind):
            continue
        reasons = "; ".join(sorted({f"{entry.aside.host}: {entry.aside.reason}" for entry in asides}))
        yield f"{count} {describe_kind(kind)} wait, and no connected worker can serve them: {reasons}"


def strangers(workers: list[WorkerInfo]) -> Iterator[str]:
    """Yield a line for each worker that is none of ours."""
    for worker in workers:
        if worker.start_id is None:
            yield (
                f"{worker.name} on {worker.host} is RQ's own worker and can't do these tasks: stop it there, "
                "and run `worker start`; what it takes comes back"
            )
