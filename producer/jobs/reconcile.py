"""Reconciling: wanted tasks, less those done, less those on their way; only the rest is enqueued.

A lost job, a wiped Redis, a second enqueue and a resumed run are all this one code path.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from redis import Redis

from shared.jobs.history import forget_events
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.kinds.kind import Task
from shared.stores.store import ShardStore

LOCK_SECONDS = 30
"""Lock timeout: how long a killed producer can hold up others."""
BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """Task ids, by where they are."""

    done: frozenset[str]
    """Collected."""
    in_store: frozenset[str]
    """Finished, waiting to be collected."""
    in_flight: frozenset[str]
    """Queued or running."""
    running: frozenset[str]
    """Those of them that a worker has started."""
    failed: frozenset[str]
    """Gave up after their retries."""
    enqueued: tuple[str, ...]
    """Put into the queue by this very call."""

    @property
    def outstanding(self) -> int:
        """Tasks from which a shard will still come."""
        return len(self.in_store) + len(self.in_flight) + len(self.enqueued)


def reconcile(
    tasks: Sequence[Task],
    done: frozenset[str],
    *,
    connection: Redis,
    store: ShardStore,
    retry_failed: bool,
    enqueue: bool = True,
) -> Reconciled:
    """Enqueue what is neither done nor on its way; all tasks are of one namespace and store.

    `retry_failed` enqueues failed tasks again; without it they are only reported.
    """
    queue = TaskQueue(queue_name(store.id), connection)
    wanted = {task.id for task in tasks}
    # Two producers at once would both find the same tasks missing.
    with connection.lock(f"bitfleet:reconcile:{queue.name}", timeout=LOCK_SECONDS) as lock:
        # In this order: a task that moves on meanwhile is seen at its old place or at its new one.
        on_their_way = queue.in_flight()
        in_flight = on_their_way.ids & wanted
        failed = (queue.failed_ids() & wanted) - in_flight
        in_store = (store.record_ids(tasks[0].namespace) & wanted if tasks else set()) - done
        known = done | in_store | in_flight | (set() if retry_failed else failed)
        rest = [task for task in tasks if task.id not in known]
        if enqueue:
            for start in range(0, len(rest), BATCH):
                batch = rest[start : start + BATCH]
                forget_events(connection, [task.id for task in batch])
                queue.enqueue_tasks(batch)
                lock.reacquire()
    return Reconciled(
        done=frozenset(wanted & done),
        in_store=frozenset(in_store),
        in_flight=frozenset(in_flight - in_store),
        running=frozenset(on_their_way.started & in_flight - in_store),
        failed=frozenset() if retry_failed and enqueue else frozenset(failed - done - in_store),
        enqueued=tuple(task.id for task in rest) if enqueue else (),
    )
