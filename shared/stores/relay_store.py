"""The relay: a store in Redis. Workers need nothing but the URL of Redis."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from humanfriendly import format_size
from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from shared.errors import ShardCorruptError, StoreFullError, StoreTroubleError
from shared.stores import relay_scripts
from shared.stores.records import Record, decode_record, encode_record
from shared.stores.store import PutOutcome, ShardStore, require_portable
from shared.stores.usage import NAMESPACE, Held, Usage

RELAY_ID = "relay"
DEFAULT_LIMIT_BYTES = 1024**3
MIN_LIMIT_BYTES = 1_000_000
"""The smallest limit that can be set: one image of the smallest model needs about this much."""

_BATCH = 500
"""So many shards are deleted at once, after which others have their turn."""

_LIMIT_KEY = "bitfleet:relay:limit"
_USED_KEY = "bitfleet:relay:used"
"""A hash: bytes by namespace, and those of all blobs under the field `blobs`. Blobs have no namespace."""
_BLOBS_KEY = "bitfleet:relay:blobs"
"""A hash: the bytes of each blob, by digest."""


class RelayStore(ShardStore):
    """Holds shards up to a limit of bytes, which the producer sets for everybody."""

    def __init__(self, connection: Redis) -> None:
        self.id = RELAY_ID
        self.label = "the Redis relay"
        self._redis = connection
        self._put = connection.register_script(relay_scripts.PUT)
        self._discard = connection.register_script(relay_scripts.DISCARD)
        self._put_blob = connection.register_script(relay_scripts.PUT_BLOB)
        self._discard_blob = connection.register_script(relay_scripts.DISCARD_BLOB)
        self._recount = connection.register_script(relay_scripts.RECOUNT)

    @property
    def used_bytes(self) -> int:
        """Bytes of all shards and blobs in the relay, as counted."""
        counts = cast(dict[bytes, bytes], self._redis.hgetall(_USED_KEY))
        return sum(_number(count) or 0 for count in counts.values())

    def usage(self, namespaces: Iterable[str] = ()) -> Usage:
        with self._redis.pipeline() as pipeline:
            pipeline.hgetall(_USED_KEY)
            pipeline.hgetall(_BLOBS_KEY)
            counts, blobs = cast(list[dict[bytes, bytes]], pipeline.execute())
        sizes = {name.decode("utf-8", "replace"): _number(size) or 0 for name, size in counts.items()}
        names = [name for name in {*sizes, *namespaces} - {"blobs"} if NAMESPACE.fullmatch(name)]
        with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hlen(_records_key(name))
            records = cast(list[int], pipeline.execute())
        held = {
            name: Held(records=count, size=sizes.get(name, 0))
            for name, count in zip(names, records, strict=True)
            if count or sizes.get(name)
        }
        return Usage(
            namespaces=held,
            blobs={digest.decode("utf-8", "replace"): _number(size) or 0 for digest, size in blobs.items()},
        )

    def discard_namespace(self, namespace: str) -> None:
        ids = sorted(self.record_ids(namespace))
        for start in range(0, len(ids), _BATCH):
            with self._redis.pipeline(transaction=False) as pipeline:
                for task_id in ids[start : start + _BATCH]:
                    keys = [_records_key(namespace), _shard_key(namespace, task_id), _USED_KEY]
                    # A registered script would first ask Redis whether it is there, which producers may not.
                    discard = ("EVAL", relay_scripts.DISCARD, len(keys), *keys, task_id, namespace)
                    pipeline.execute_command(*discard)  # type: ignore[no-untyped-call]
                pipeline.execute()
        self.recount([namespace])

    @property
    def limit_bytes(self) -> int:
        """The largest allowed value of `used_bytes`."""
        return _number(cast(bytes | None, self._redis.get(_LIMIT_KEY)) or b"") or DEFAULT_LIMIT_BYTES

    def recount(self, namespaces: Iterable[str] = ()) -> None:
        """Count what is there, in these namespaces and all that are known, and put the count right.

        It goes wrong if Redis evicts keys, or if somebody deletes some.
        """
        self._recount(keys=[_USED_KEY, _BLOBS_KEY], args=[*namespaces])

    @property
    def capacity(self) -> int:
        return self.limit_bytes

    def set_limit(self, limit_bytes: int) -> None:
        """Set the limit for all workers."""
        self._redis.set(_LIMIT_KEY, limit_bytes)

    def put(self, record: Record, shard: bytes) -> PutOutcome:
        require_portable(f"the shard of {record.task.label}", len(shard))
        namespace = record.task.namespace
        return _outcome(
            self._put,
            keys=[_records_key(namespace), _shard_key(namespace, record.id), _USED_KEY, _LIMIT_KEY],
            args=[record.id, encode_record(record), shard, DEFAULT_LIMIT_BYTES, namespace],
        )

    def has_record(self, namespace: str, task_id: str) -> bool:
        return bool(self._redis.hexists(_records_key(namespace), task_id))

    def record_ids(self, namespace: str) -> set[str]:
        return {
            key.decode("utf-8", "replace")
            for key in cast(list[bytes], self._redis.hkeys(_records_key(namespace)))
        }

    def record(self, namespace: str, task_id: str) -> Record:
        data = cast(bytes | None, self._redis.hget(_records_key(namespace), task_id))
        if data is None:
            raise ShardCorruptError(f"{task_id} has no record in {self.label}")
        record = decode_record(data)
        if record.id != task_id or record.task.namespace != namespace:
            raise ShardCorruptError(f"the record of {task_id} in {self.label} is {record.id}'s")
        return record

    def shard(self, record: Record) -> bytes:
        key = _shard_key(record.task.namespace, record.id)
        # Check the size first, so that an oversized value is never fetched.
        if (size := self._redis.strlen(key)) != record.size:
            raise ShardCorruptError(
                f"shard {record.id} ({record.task.label}) has {size} bytes, its record says {record.size}"
            )
        data = cast(bytes | None, self._redis.get(key)) or b""
        record.check(data)
        return data

    def discard(self, namespace: str, task_id: str) -> None:
        self._discard(
            keys=[_records_key(namespace), _shard_key(namespace, task_id), _USED_KEY],
            args=[task_id, namespace],
        )

    def put_blob(self, digest: str, data: bytes) -> None:
        require_portable(f"blob {digest[:12]}", len(data))
        keys = [_BLOBS_KEY, _blob_key(digest), _USED_KEY, _LIMIT_KEY]
        if _outcome(self._put_blob, keys=keys, args=[digest, "", data, DEFAULT_LIMIT_BYTES]) == "full":
            raise StoreFullError(
                f"{self.label} has no room for {format_size(len(data))} of samples: it holds "
                f"{format_size(self.used_bytes)} of {format_size(self.limit_bytes)}; run `producer "
                "collect` in the folders of other runs, or enqueue with a larger --relay-limit"
            )

    def has_blob(self, digest: str) -> bool:
        return bool(self._redis.exists(_blob_key(digest)))

    def missing_blobs(self, digests: Sequence[str]) -> list[str]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for digest in digests:
                pipeline.exists(_blob_key(digest))
            found = pipeline.execute()
        return [digest for digest, is_there in zip(digests, found, strict=True) if not is_there]

    def blob(self, digest: str) -> bytes:
        data = cast(bytes | None, self._redis.get(_blob_key(digest)))
        if data is None:
            raise StoreTroubleError(
                f"{self.label} has no blob {digest[:12]}; `producer collect` puts it there again"
            )
        if hashlib.sha256(data).hexdigest() != digest:
            raise ShardCorruptError(f"blob {digest[:12]} in {self.label} was altered")
        return data

    def discard_blob(self, digest: str) -> None:
        self._discard_blob(keys=[_BLOBS_KEY, _blob_key(digest), _USED_KEY], args=[digest])


def _outcome(script: Callable[..., Any], **call: Any) -> PutOutcome:
    try:
        outcome: bytes = script(**call)
    except ResponseError as error:
        # Redis itself can be full before the relay is. Before version 7 the script's error is wrapped.
        if not isinstance(error, OutOfMemoryError) and "OOM command" not in str(error):
            raise
        return "full"
    return cast(PutOutcome, outcome.decode())


def _number(text: bytes) -> int | None:
    # Python refuses to read numbers of thousands of digits.
    return int(text) if text.isdigit() and len(text) < 20 else None


def _records_key(namespace: str) -> str:
    return f"bitfleet:records:{namespace}"


def _shard_key(namespace: str, task_id: str) -> str:
    return f"bitfleet:shard:{namespace}:{task_id}"


def _blob_key(digest: str) -> str:
    return f"bitfleet:blob:{digest}"
