"""The producer on paper: it enqueues, collects, and is asked for the status, on the virtual clock."""

import time
from dataclasses import dataclass, field

from redis import Redis

from benchmarks.fleet.mac import QUEUE
from benchmarks.fleet.workload import Workload
from producer.folder.intake import take_in
from producer.jobs.reconcile import reconcile
from shared.jobs.running import queue_age, running_jobs
from shared.jobs.task_queue import TaskQueue
from shared.jobs.workers import live_workers
from shared.kinds.kind import Task
from shared.stores.records import Record
from shared.stores.relay_store import RelayStore

PASS_SECONDS = 29e-6
"""Of a collector's pass, by task: 0.29 CPU seconds for 10,000 (docs/performance.md)."""
LEAST_PAUSE_SECONDS = 1.0
RARE_SECONDS = 300.0
QUICKEST = 20.0
"""Jobs a second: the fleet does fewer. As long as jobs wait, nobody waits for a pass or a look: the next one
comes when none may wait any more, or after five minutes."""
LOOK_SECONDS = 10.0


@dataclass(slots=True)
class SimulatedProducer:
    """Its passes are those of `producer collect`, without a folder."""

    redis: Redis
    workload: Workload
    records: dict[str, Record] = field(default_factory=dict)
    """Of what is collected, by task id."""
    failed: set[str] = field(default_factory=set)
    emptied: float = 0.0
    """When the queue was last seen not empty."""
    is_over: bool = False

    def collect(self) -> None:
        """Until all is collected or has failed."""
        queue, store = TaskQueue(QUEUE, self.redis), RelayStore(self.redis)
        pass_seconds = PASS_SECONDS * len(self.workload.loads)
        open_parts = [*self.workload.parts]
        while True:
            store.recount()
            # A pass takes this long; what is done meanwhile is for the next one.
            time.sleep(pass_seconds)
            open_parts = [part for part in open_parts if not self._collect_part(part, store)]
            if not open_parts:
                self.is_over = True
                return
            pause = max(LEAST_PAUSE_SECONDS, 3 * pass_seconds)
            time.sleep(max(pause, _idle_seconds(self.redis.llen(queue.key))))

    def _collect_part(self, part: tuple[Task, ...], store: RelayStore) -> bool:
        collected = {task.id: self.records[task.id] for task in part if task.id in self.records}
        take_in(part, collected, store, lambda record, shard: None)
        self.records |= collected
        state = reconcile(part, frozenset(collected), connection=self.redis, store=store, retry_failed=False)
        self.failed |= state.failed
        return len(state.done) + len(state.failed) == len(part)

    def look(self) -> None:
        """Again and again what `producer status` asks Redis, every ten seconds near the end."""
        queue = TaskQueue(QUEUE, self.redis)
        while True:
            live_workers(queue)
            running_jobs(queue)
            queue_age(queue)
            waiting = len(queue.in_flight().ready)
            if waiting:
                self.emptied = time.time()
            time.sleep(max(LOOK_SECONDS, _idle_seconds(waiting)))


def _idle_seconds(waiting: int) -> float:
    return min(RARE_SECONDS, waiting / QUICKEST)
