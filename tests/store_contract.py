"""The shard store's contract as tests, inherited by the tests of every store."""

import hashlib
from typing import Any

import pytest

from shared.errors import ShardCorruptError, StoreError, TooLargeError
from shared.stores.records import encode_record
from shared.stores.store import ShardStore
from shared.stores.usage import Usage
from tests.tasks import SENSITIVITY, image_task, layer_task, record_of

SHARD = b"the bytes of a shard" * 10
TASK = image_task()
RECORD = record_of(TASK, SHARD)


class StoreContract:
    """What every store keeps; `damage` reaches around it to the bytes themselves."""

    def damage_shard(self, store: Any, data: bytes | None) -> None:
        """Replace RECORD's shard, or take it away."""
        raise NotImplementedError

    def damage_record(self, store: Any, task_id: str, data: bytes) -> None:
        raise NotImplementedError

    def damage_blob(self, store: Any, digest: str, data: bytes) -> None:
        raise NotImplementedError

    def break_second_write(self, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the shard be written, and its record fail."""
        raise NotImplementedError

    def test_put_then_read_back(self, store: ShardStore) -> None:
        assert not store.has_record(TASK.namespace, TASK.id)
        assert store.put(RECORD, SHARD) == "stored"
        assert store.has_record(TASK.namespace, TASK.id)
        assert store.record_ids(TASK.namespace) == {TASK.id}
        record = store.record(TASK.namespace, TASK.id)
        assert record == RECORD
        assert store.shard(record) == SHARD

    def test_an_empty_store_has_nothing(self, store: ShardStore) -> None:
        assert store.record_ids("nothing") == set()
        with pytest.raises(ShardCorruptError):
            store.record(TASK.namespace, TASK.id)
        with pytest.raises(ShardCorruptError, match="image 0"):
            store.shard(RECORD)

    def test_the_first_record_counts(self, store: ShardStore) -> None:
        store.put(RECORD, SHARD)
        second = record_of(TASK, b"another", host="air")
        assert store.put(second, b"another") == "exists"
        assert store.record(TASK.namespace, TASK.id).host == "studio"
        assert store.shard(store.record(TASK.namespace, TASK.id)) == SHARD

    def test_a_crash_before_the_record_leaves_nothing_that_looks_done(
        self, store: ShardStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            self.break_second_write(store, patch)
            with pytest.raises((StoreError, KeyboardInterrupt)):
                store.put(RECORD, SHARD)
        assert not store.has_record(TASK.namespace, TASK.id)
        assert store.record_ids(TASK.namespace) == set()
        # The next attempt is a first one, and its bytes are what is read.
        again = record_of(TASK, b"again", host="air")
        assert store.put(again, b"again") == "stored"
        assert store.shard(store.record(TASK.namespace, TASK.id)) == b"again"

    @pytest.mark.parametrize(
        "data", [SHARD[:-1], SHARD + b"x", b"", None], ids=["cut", "longer", "empty", "gone"]
    )
    def test_a_truncated_or_missing_shard_is_named(self, store: ShardStore, data: bytes | None) -> None:
        store.put(RECORD, SHARD)
        self.damage_shard(store, data)
        with pytest.raises(ShardCorruptError, match=f"{TASK.id}.*image 0"):
            store.shard(RECORD)

    def test_an_altered_shard_is_named(self, store: ShardStore) -> None:
        store.put(RECORD, SHARD)
        self.damage_shard(store, SHARD[:-1] + b"X")
        with pytest.raises(ShardCorruptError, match=f"{TASK.id}.*sha256"):
            store.shard(RECORD)

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"task": 1}', b"null"], ids=repr)
    def test_an_unreadable_record_is_there_but_corrupt(self, store: ShardStore, data: bytes) -> None:
        store.put(RECORD, SHARD)
        self.damage_record(store, TASK.id, data)
        assert store.has_record(TASK.namespace, TASK.id)
        assert store.record_ids(TASK.namespace) == {TASK.id}
        with pytest.raises(ShardCorruptError):
            store.record(TASK.namespace, TASK.id)
        store.discard(TASK.namespace, TASK.id)
        assert store.put(RECORD, SHARD) == "stored"

    @pytest.mark.parametrize(
        "foreign",
        [image_task(1), layer_task()],
        ids=["another image", "another kind"],
    )
    def test_another_tasks_record_is_refused(self, store: ShardStore, foreign: Any) -> None:
        store.put(RECORD, SHARD)
        self.damage_record(store, TASK.id, encode_record(record_of(foreign, SHARD)))
        with pytest.raises(ShardCorruptError, match=f"{TASK.id}.*{foreign.id}"):
            store.record(TASK.namespace, TASK.id)

    def test_discard_forgets_both_and_may_be_repeated(self, store: ShardStore) -> None:
        store.discard(TASK.namespace, TASK.id)
        store.put(RECORD, SHARD)
        for _ in range(2):
            store.discard(TASK.namespace, TASK.id)
            assert store.record_ids(TASK.namespace) == set()
            with pytest.raises(ShardCorruptError):
                store.shard(RECORD)
        assert store.put(RECORD, SHARD) == "stored"

    def test_discard_leaves_names_that_only_begin_alike(self, store: ShardStore) -> None:
        # cal-…-100000 begins with cal-…-10000's whole id.
        short, long = image_task(10_000), image_task(100_000)
        assert long.id.startswith(short.id)
        for task in (short, long):
            store.put(record_of(task, SHARD), SHARD)
        store.discard(short.namespace, short.id)
        assert store.record_ids(TASK.namespace) == {long.id}
        assert store.shard(record_of(long, SHARD)) == SHARD

    def test_groups_do_not_see_each_other(self, store: ShardStore) -> None:
        task = layer_task()
        store.put(RECORD, SHARD)
        store.put(record_of(task, b"layer"), b"layer")
        assert store.record_ids(TASK.namespace) == {TASK.id}
        assert store.record_ids(SENSITIVITY.id) == {task.id}
        assert not store.has_record(SENSITIVITY.id, TASK.id)
        store.discard(SENSITIVITY.id, TASK.id)
        store.discard(SENSITIVITY.id, task.id)
        assert store.shard(RECORD) == SHARD

    def test_a_second_client_sees_the_same(self, store: ShardStore, second: ShardStore) -> None:
        assert second.id == store.id
        # Looked at before, so that a cached listing would be found out.
        assert second.record_ids(TASK.namespace) == set()
        store.put(RECORD, SHARD)
        assert second.has_record(TASK.namespace, TASK.id)
        assert second.record_ids(TASK.namespace) == {TASK.id}
        assert second.shard(second.record(TASK.namespace, TASK.id)) == SHARD
        assert second.put(RECORD, SHARD) == "exists"
        store.discard(TASK.namespace, TASK.id)
        assert not second.has_record(TASK.namespace, TASK.id)

    def test_nothing_large_is_taken(self, store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shared.stores.store.MAX_PORTABLE_BYTES", len(SHARD))
        assert store.put(RECORD, SHARD) == "stored"
        larger = SHARD + b"x"
        other = image_task(1)
        with pytest.raises(TooLargeError, match=r"the shard of image 1 has .* takes at most"):
            store.put(record_of(other, larger), larger)
        assert not store.has_record(other.namespace, other.id)
        digest = hashlib.sha256(larger).hexdigest()
        with pytest.raises(TooLargeError, match=f"blob {digest[:12]}"):
            store.put_blob(digest, larger)
        assert not store.has_blob(digest)

    def test_blobs(self, store: ShardStore) -> None:
        data = bytes(range(256))
        digest = hashlib.sha256(data).hexdigest()
        with pytest.raises(StoreError, match=digest[:12]):
            store.blob(digest)
        assert not store.has_blob(digest)
        store.put_blob(digest, data)
        store.put_blob(digest, data)
        assert store.has_blob(digest)
        assert store.blob(digest) == data
        assert store.record_ids("blobs") == set()
        self.damage_blob(store, digest, data[:-1])
        with pytest.raises(ShardCorruptError, match=digest[:12]):
            store.blob(digest)
        for _ in range(2):
            store.discard_blob(digest)
        with pytest.raises(StoreError):
            store.blob(digest)

    def test_what_it_holds_is_counted_and_goes_by_namespace(self, store: ShardStore) -> None:
        assert store.usage() == Usage()
        layer, data = layer_task(), b"another shard"
        for task, shard in ((TASK, SHARD), (image_task(1), SHARD), (layer, data)):
            store.put(record_of(task, shard), shard)
        digest = hashlib.sha256(b"blob").hexdigest()
        store.put_blob(digest, b"blob")
        usage = store.usage(["nothing"])
        assert {name: held.records for name, held in usage.namespaces.items()} == {
            TASK.namespace: 2,
            layer.namespace: 1,
        }
        assert usage.namespaces[TASK.namespace].size >= 2 * len(SHARD)
        assert usage.blobs == {digest: 4}
        assert usage.size >= 2 * len(SHARD) + len(data) + 4
        store.discard_namespace(TASK.namespace)
        store.discard_namespace("nothing")
        assert store.usage([TASK.namespace]).namespaces.keys() == {layer.namespace}
        assert store.record_ids(TASK.namespace) == set()
        assert store.shard(store.record(layer.namespace, layer.id)) == data
