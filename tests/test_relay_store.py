"""The Redis relay keeps the store's contract, its limit, and exact count of bytes."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from shared.errors import ShardCorruptError, StoreError, StoreFullError
from shared.runs import RunSettings
from shared.stores.open_store import open_store
from shared.stores.relay_store import RelayStore
from tests.store_contract import RECORD, SHARD, TASK, StoreContract
from tests.tasks import SETTINGS, image_task, record_of


class TestRelayStore(StoreContract):
    @pytest.fixture
    def store(self, redis: Redis) -> RelayStore:
        return RelayStore(redis)

    @pytest.fixture
    def second(self, redis_url: str) -> Iterator[RelayStore]:
        with Redis.from_url(redis_url) as client:
            yield RelayStore(client)

    def damage_shard(self, store: Any, data: bytes | None) -> None:
        key = f"bitfleet:shard:{TASK.namespace}:{TASK.id}"
        assert store._redis.delete(key) == 1
        if data is not None:
            store._redis.set(key, data)

    def damage_record(self, store: Any, task_id: str, data: bytes) -> None:
        assert store._redis.hset(f"bitfleet:records:{TASK.namespace}", task_id, data) == 0

    def damage_blob(self, store: Any, digest: str, data: bytes) -> None:
        assert store._redis.set(f"bitfleet:blob:{digest}", data)

    def break_second_write(self, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        # The script is one step for Redis: what can fail is the whole of it.
        monkeypatch.setattr(store, "_put", fail)

    def test_nothing_of_it_is_left_when_the_script_fails(self, store: RelayStore, redis: Redis) -> None:
        redis.config_set("maxmemory", 1)
        # A full Redis is a full relay: the worker waits for the collector.
        assert store.put(RECORD, SHARD) == "full"
        redis.config_set("maxmemory", 0)
        assert redis.keys("bitfleet:*") == []

    @pytest.mark.parametrize(
        "error",
        [
            ResponseError("Error running script (call to f_1): @user_script:8: -OOM command not allowed"),
            OutOfMemoryError("command not allowed when used memory > 'maxmemory'. script: 1"),
        ],
        ids=["Redis 6", "Redis 7"],
    )
    def test_full_in_the_words_of_either_redis(self, store: RelayStore, error: Exception) -> None:
        def refuse(**_: Any) -> Any:
            raise error

        store._put = refuse  # type: ignore[assignment]
        assert store.put(RECORD, SHARD) == "full"

    def test_a_full_redis_can_be_emptied(self, store: RelayStore, redis: Redis) -> None:
        for index in range(2):
            store.put(record_of(image_task(index), SHARD), SHARD)
        redis.config_set("maxmemory", 1)
        assert store.shard(store.record(TASK.namespace, TASK.id)) == SHARD
        store.discard(TASK.namespace, TASK.id)
        assert store.used_bytes == len(SHARD)
        assert store.record_ids(TASK.namespace) == {image_task(1).id}

    def test_limit(self, store: RelayStore) -> None:
        store.set_limit(2 * len(SHARD))
        tasks = [image_task(index) for index in range(3)]
        outcomes = [store.put(record_of(task, SHARD), SHARD) for task in tasks]
        assert outcomes == ["stored", "stored", "full"]
        assert store.record_ids(TASK.namespace) == {tasks[0].id, tasks[1].id}
        assert store.used_bytes == 2 * len(SHARD)
        store.discard(TASK.namespace, tasks[0].id)
        assert store.put(record_of(tasks[2], SHARD), SHARD) == "stored"
        # One that is there already is not held up by a full relay.
        assert store.put(record_of(tasks[2], SHARD), SHARD) == "exists"

    def test_an_empty_relay_takes_a_shard_over_the_limit(self, store: RelayStore) -> None:
        store.set_limit(10)
        assert store.put(RECORD, SHARD) == "stored"
        assert store.put(record_of(image_task(1), b"x"), b"x") == "full"
        store.discard(TASK.namespace, TASK.id)
        assert store.put(record_of(image_task(1), b"x"), b"x") == "stored"

    def test_a_full_relay_takes_a_share_of_each_other_run(self, store: RelayStore) -> None:
        store.set_limit(16 * len(SHARD))

        def put(run: RunSettings) -> int:
            tasks = [image_task(index, run=run) for index in range(40)]
            return sum(store.put(record_of(task, SHARD), SHARD) == "stored" for task in tasks)

        runs = [msgspec.structs.replace(SETTINGS, seed=seed) for seed in range(12)]
        counts = [put(run) for run in runs]
        # Up to as much again.
        assert counts == [16, *[2] * 8, 0, 0, 0]
        store.discard(runs[1].id, image_task(0, run=runs[1]).id)
        assert put(runs[1]) == 1

    def test_bytes_are_counted_exactly(self, store: RelayStore, redis: Redis) -> None:
        for index in range(5):
            shard = b"x" * (index * 7)
            store.put(record_of(image_task(index), shard), shard)
            store.put(record_of(image_task(index), shard), shard)
        stored = sum(redis.strlen(key) for key in redis.keys("bitfleet:shard:*"))
        assert store.used_bytes == stored == 70
        for index in (3, 3, 0, 1):
            store.discard(TASK.namespace, image_task(index).id)
        assert store.used_bytes == 42
        for index in range(5):
            store.discard(TASK.namespace, image_task(index).id)
        assert store.used_bytes == 0
        assert redis.keys("bitfleet:relay:*") == []

    def test_what_redis_lost_is_not_counted_for_ever(self, store: RelayStore, redis: Redis) -> None:
        for index in range(3):
            store.put(record_of(image_task(index), SHARD), SHARD)
        store.put_blob("0" * 64, SHARD)
        store.put_blob("1" * 64, SHARD)
        # As an eviction or a stranger would.
        redis.delete(f"bitfleet:shard:{TASK.namespace}:{TASK.id}", f"bitfleet:blob:{'0' * 64}")
        assert store.used_bytes == 5 * len(SHARD)
        store.recount()
        assert store.used_bytes == 3 * len(SHARD)
        redis.delete(f"bitfleet:records:{TASK.namespace}")
        store.recount()
        assert store.used_bytes == len(SHARD)
        redis.delete("bitfleet:relay:used")
        store.recount([TASK.namespace])
        assert store.used_bytes == len(SHARD)

    @pytest.mark.parametrize("key", ["bitfleet:relay:used", "bitfleet:relay:blobs"])
    def test_a_count_of_another_type_stops_nobody(self, store: RelayStore, redis: Redis, key: str) -> None:
        redis.set(key, "odd")
        store.recount()
        assert store.put(RECORD, SHARD) == "stored"
        store.put_blob("0" * 64, SHARD)
        redis.hset("bitfleet:relay:used", "blobs", "odd")
        assert store.put(record_of(image_task(1), SHARD), SHARD) == "stored"
        store.recount()
        assert store.used_bytes == 3 * len(SHARD)

    def test_blobs_count_against_the_limit(self, store: RelayStore) -> None:
        store.set_limit(3 * len(SHARD))
        store.put_blob("0" * 64, SHARD)
        store.put_blob("0" * 64, SHARD)
        assert store.used_bytes == len(SHARD)
        outcomes = [store.put(record_of(image_task(index), SHARD), SHARD) for index in range(3)]
        assert outcomes == ["stored", "stored", "full"]
        with pytest.raises(StoreFullError, match=r"has no room for .*: it holds .* of .*producer collect"):
            store.put_blob("1" * 64, SHARD)
        assert not store.has_blob("1" * 64)
        store.discard_blob("0" * 64)
        store.put_blob("1" * 64, SHARD)
        assert store.used_bytes == 3 * len(SHARD)

    def test_blobs_alone_hold_up_no_shard(self, store: RelayStore) -> None:
        """One at a time goes through, however little room the samples leave."""
        store.set_limit(len(SHARD))
        store.put_blob("0" * 64, SHARD)
        assert store.put(RECORD, SHARD) == "stored"
        assert store.put(record_of(image_task(1), SHARD), SHARD) == "full"
        store.discard(TASK.namespace, TASK.id)
        assert store.put(record_of(image_task(1), SHARD), SHARD) == "stored"

    def test_a_shard_larger_than_its_record_is_not_fetched(self, store: RelayStore) -> None:
        class NoGet:
            def strlen(self, key: str) -> int:
                return len(SHARD) + 1

        store._redis = NoGet()  # type: ignore[assignment]
        with pytest.raises(ShardCorruptError, match=f"{len(SHARD) + 1} bytes"):
            store.shard(RECORD)

    def test_open_store_without_a_url(self, redis: Redis) -> None:
        assert isinstance(open_store(None, redis), RelayStore)


def fail(*args: Any, **kwargs: Any) -> Any:
    raise StoreError("broken for a test")
