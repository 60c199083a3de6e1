"""Reconciling: whatever was lost, doubled or done already, the same end state."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from producer.jobs import reconcile as module
from producer.jobs.reconcile import Reconciled, reconcile
from shared.jobs.history import Event, add_event, read_events
from shared.jobs.task_job import TaskJob
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.kinds.kind import Task
from shared.stores.relay_store import RelayStore
from tests.tasks import image_task, layer_task, record_of

TASKS: list[Task] = [image_task(index) for index in range(4)]
IDS = [task.id for task in TASKS]
QUEUE = queue_name("relay")
NOTHING: frozenset[str] = frozenset()


class Producer:
    """Reconciles TASKS against one Redis, and does to it what workers and accidents do."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.store = RelayStore(redis)
        self.queue = TaskQueue(QUEUE, redis)

    def __call__(
        self, done: frozenset[str] = NOTHING, *, retry_failed: bool = False, enqueue: bool = True
    ) -> Reconciled:
        return reconcile(
            TASKS, done, connection=self.redis, store=self.store, retry_failed=retry_failed, enqueue=enqueue
        )

    def start(self, task: Task) -> None:
        self.redis.lrem(self.queue.key, 0, task.id)
        self.redis.zadd(f"rq:wip:{QUEUE}", {f"{task.id}:x": 2**33})

    def finish(self, task: Task) -> None:
        self.store.put(record_of(task, b"x"), b"x")
        self.redis.lrem(self.queue.key, 0, task.id)
        self.redis.zrem(f"rq:wip:{QUEUE}", f"{task.id}:x")
        self.redis.zadd(f"rq:finished:{QUEUE}", {task.id: 2**33})

    def fail(self, task: Task) -> None:
        self.redis.lrem(self.queue.key, 0, task.id)
        self.redis.zadd(f"rq:failed:{QUEUE}", {task.id: 2**33})
        add_event(self.redis, task.id, Event(outcome="failed", host="h", worker="w", detail="why"))

    def queued(self) -> list[str]:
        """Straight from the list, doubles included."""
        return [entry.decode() for entry in self.redis.lrange(self.queue.key, 0, -1)]


@pytest.fixture
def producer(redis: Redis) -> Iterator[Producer]:
    yield Producer(redis)


def test_first_time_and_again(producer: Producer) -> None:
    first = producer()
    assert first.enqueued == tuple(IDS)
    assert first.outstanding == 4
    for _ in range(2):
        again = producer()
        assert again.enqueued == ()
        assert again.in_flight == frozenset(IDS)
        assert again.outstanding == 4
    assert producer.queued() == IDS


def test_two_producers_at_once_double_nothing(producer: Producer, redis_url: str) -> None:
    def one() -> Reconciled:
        with Redis.from_url(redis_url) as client:
            return Producer(client)()

    with ThreadPoolExecutor(4) as pool:
        results = [future.result() for future in [pool.submit(one) for _ in range(8)]]
    assert sorted(producer.queued()) == IDS
    assert sorted(task_id for result in results for task_id in result.enqueued) == IDS


def test_a_producer_that_died_holds_up_nobody_for_ever(producer: Producer) -> None:
    lock = producer.redis.lock(f"bitfleet:reconcile:{QUEUE}", timeout=module.LOCK_SECONDS)
    assert lock.acquire()
    assert 0 < producer.redis.ttl(f"bitfleet:reconcile:{QUEUE}") <= module.LOCK_SECONDS


def test_running_and_finished_tasks_are_left_alone(producer: Producer) -> None:
    producer()
    producer.start(TASKS[0])
    producer.start(TASKS[1])
    producer.finish(TASKS[2])
    result = producer()
    assert result.enqueued == ()
    assert result.in_flight == {IDS[0], IDS[1], IDS[3]}
    assert result.in_store == {IDS[2]}
    assert result.outstanding == 4
    assert producer.queued() == [IDS[3]]


def test_collected_tasks_are_not_asked_for_again(producer: Producer) -> None:
    result = producer(frozenset(IDS[:3]))
    assert result.enqueued == (IDS[3],)
    assert result.done == frozenset(IDS[:3])
    # Its shard is still in the store: collected is collected.
    producer.finish(TASKS[0])
    assert producer(frozenset(IDS[:3])).in_store == frozenset()


def test_a_wiped_redis(producer: Producer) -> None:
    producer()
    producer.start(TASKS[0])
    producer.redis.flushall()
    result = producer(frozenset({IDS[1]}))
    assert result.enqueued == (IDS[0], IDS[2], IDS[3])
    assert producer.queued() == [IDS[0], IDS[2], IDS[3]]


def test_a_task_lost_from_the_queue(producer: Producer) -> None:
    producer()
    producer.redis.lrem(producer.queue.key, 0, IDS[2])
    assert producer().enqueued == (IDS[2],)
    assert sorted(producer.queued()) == IDS


def test_a_job_whose_hash_expired_is_enqueued_once_a_worker_came_by(producer: Producer) -> None:
    from worker.jobs.maintenance import return_lost_jobs

    producer()
    producer.redis.delete(TaskJob.key_for(IDS[0]))
    producer.redis.lrem(producer.queue.key, 0, IDS[0])
    producer.redis.zadd(f"rq:wip:{QUEUE}", {f"{IDS[0]}:x": 10})
    return_lost_jobs(producer.redis, QUEUE)
    assert producer().enqueued == (IDS[0],)


def test_a_finished_job_whose_shard_was_dropped_is_enqueued_again(producer: Producer) -> None:
    producer()
    producer.finish(TASKS[1])
    producer.store.discard(TASKS[1].namespace, IDS[1])
    assert producer().enqueued == (IDS[1],)
    assert producer.redis.zrange(f"rq:finished:{QUEUE}", 0, -1) == []
    job = TaskJob.fetch(IDS[1], connection=producer.redis, serializer=producer.queue.serializer)
    assert job.task == TASKS[1]


def test_failed_tasks_are_told_and_tried_again_only_when_asked(producer: Producer) -> None:
    producer()
    producer.fail(TASKS[0])
    for _ in range(2):
        result = producer()
        assert result.failed == {IDS[0]}
        assert result.enqueued == ()
        assert result.outstanding == 3
    assert [event.detail for event in read_events(producer.redis, IDS[0])] == ["why"]
    retried = producer(retry_failed=True)
    assert retried.failed == frozenset()
    assert retried.enqueued == (IDS[0],)
    assert producer.queue.failed_ids() == set()
    # A fresh life: what it died of is no longer told of it.
    assert read_events(producer.redis, IDS[0]) == []


def test_a_failed_task_with_a_shard_is_no_failure(producer: Producer) -> None:
    # Its worker stored the shard and was killed before it could say so.
    producer()
    producer.fail(TASKS[0])
    producer.finish(TASKS[0])
    result = producer(retry_failed=True)
    assert (result.failed, result.in_store, result.enqueued) == (frozenset(), {IDS[0]}, ())
    assert producer(frozenset({IDS[0]})).failed == frozenset()


def test_looking_changes_nothing(producer: Producer) -> None:
    producer()
    producer.redis.lrem(producer.queue.key, 0, IDS[3])
    producer.fail(TASKS[0])
    before = {key: producer.redis.dump(key) for key in producer.redis.keys("*")}
    for retry_failed in (False, True):
        result = producer(enqueue=False, retry_failed=retry_failed)
        assert result.enqueued == ()
        assert result.failed == {IDS[0]}
    assert {key: producer.redis.dump(key) for key in producer.redis.keys("*")} == before


def test_strangers_jobs_do_not_count(producer: Producer) -> None:
    producer.queue.enqueue_tasks([layer_task()])
    producer.fail(layer_task(bits=8))
    result = producer()
    assert result.enqueued == tuple(IDS)
    assert result.in_flight == result.failed == frozenset()


def test_no_tasks(producer: Producer) -> None:
    result = reconcile([], NOTHING, connection=producer.redis, store=producer.store, retry_failed=True)
    assert result.outstanding == 0


def test_more_tasks_than_one_batch(producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 3)
    assert producer().enqueued == tuple(IDS)
    assert producer.queued() == IDS


def test_a_producer_killed_between_two_batches_goes_on_where_it_was(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    enqueue_tasks, calls = TaskQueue.enqueue_tasks, []

    def killed_at_second(queue: TaskQueue, tasks: list[Task]) -> int:
        calls.append(tasks)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return enqueue_tasks(queue, tasks)

    with monkeypatch.context() as patch:
        patch.setattr(TaskQueue, "enqueue_tasks", killed_at_second)
        with pytest.raises(KeyboardInterrupt):
            producer()
    assert producer().enqueued == (IDS[2], IDS[3])
    assert producer.queued() == IDS
