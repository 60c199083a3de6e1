"""Reconcile: enqueue the wanted tasks that are neither done, nor finished, nor queued or running.

The same code handles lost jobs, a wiped Redis, repeated commands and continued runs.
"""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.lock import Lock

from producer.jobs.claims import claim, unclaim
from shared.jobs.asides import kind_of_job
from shared.jobs.history import forget_events
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.kinds.kind import Task
from shared.stores.store import ShardStore

LOCK_SECONDS = 30
"""Lock timeout, in seconds: how long a killed producer can block others."""
BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """Task ids by state."""

    done: frozenset[str]
    """Tasks whose shard is collected."""
    in_store: frozenset[str]
    """Finished tasks that wait to be collected."""
    in_flight: frozenset[str]
    """Queued or running tasks."""
    running: frozenset[str]
    """Running tasks."""
    failed: frozenset[str]
    """Tasks that failed in every attempt."""
    enqueued: tuple[str, ...]
    """Tasks that this call has enqueued."""
    left: frozenset[str] = frozenset()
    """Missing tasks that were not to be enqueued."""

    @property
    def outstanding(self) -> int:
        """Number of tasks whose shard is still to be collected."""
        return len(self.in_store) + len(self.in_flight) + len(self.enqueued)


def _lock(connection: Redis, queue: TaskQueue) -> Lock:
    """Return the lock without which two producers could enqueue the same missing tasks."""
    key = f"bitfleet:reconcile:{queue.name}"
    left = connection.pttl(key)
    # Every lock of ours ends by itself. One that does not would be waited for in vain.
    if left == -1 or left > 1000 * LOCK_SECONDS:
        connection.delete(key)
    lock: Lock = connection.lock(key, timeout=LOCK_SECONDS)
    return lock


def reconcile(
    tasks: Sequence[Task],
    done: frozenset[str],
    *,
    connection: Redis,
    store: ShardStore,
    retry_failed: bool,
    enqueue: bool = True,
    leave: Collection[str] = (),
    folder: Path | None = None,
) -> Reconciled:
    """Enqueue the tasks that are missing, but none of `leave`. All tasks belong to one namespace and store.

    `retry_failed` enqueues failed tasks again; without it they are only reported. `folder` is the one that
    wants the tasks, for those who see them in Redis.
    """
    queue = TaskQueue(queue_name(store.id), connection)
    wanted = {task.id for task in tasks}
    # Whoever only looks need not wait for others who enqueue.
    with _lock(connection, queue) if enqueue else nullcontext() as lock:
        # Read in this order, a task that changes its state meanwhile is seen in its old or its new state.
        on_their_way = queue.in_flight()
        in_flight = on_their_way.ids & wanted
        failed = (queue.failed_ids() & wanted) - in_flight
        in_store = (store.record_ids(tasks[0].namespace) & wanted if tasks else set()) - done
        known = done | in_store | in_flight | (set() if retry_failed else failed)
        missing = [task for task in tasks if task.id not in known]
        rest = [task for task in missing if task.id not in leave]
        if lock is not None:
            for start in range(0, len(rest), BATCH):
                batch = rest[start : start + BATCH]
                forget_events(connection, [task.id for task in batch])
                queue.enqueue_tasks(batch)
                lock.reacquire()
    if folder is not None and tasks and enqueue:
        if wanted <= done:
            unclaim(connection, queue.name, [kind_of_job(tasks[0].id)])
        else:
            claim(connection, queue.name, tasks, folder)
    return Reconciled(
        done=frozenset(wanted & done),
        in_store=frozenset(in_store),
        in_flight=frozenset(in_flight - in_store),
        running=frozenset(on_their_way.started & in_flight - in_store),
        failed=frozenset() if retry_failed and enqueue else frozenset(failed - done - in_store),
        enqueued=tuple(task.id for task in rest) if enqueue else (),
        left=frozenset(task.id for task in missing if task.id in leave),
    )
