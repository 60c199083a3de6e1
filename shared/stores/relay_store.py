"""The relay: a store in Redis. Workers need nothing but the URL of Redis."""

import hashlib
from typing import cast

from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from shared.errors import ShardCorruptError, StoreError
from shared.stores.records import Record, decode_record, encode_record
from shared.stores.store import PutOutcome, ShardStore

RELAY_ID = "relay"
DEFAULT_LIMIT_BYTES = 1024**3
MIN_LIMIT_BYTES = 1_000_000
"""The smallest limit that can be set: one image of the smallest model needs about this much."""

_BYTES_KEY = "bitfleet:relay:bytes"
_LIMIT_KEY = "bitfleet:relay:limit"

# Each is one script, so that shard, record and byte count change together or not at all.
_PUT = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 'exists' end
local limit = tonumber(redis.call('GET', KEYS[4]) or ARGV[4])
local used = tonumber(redis.call('GET', KEYS[3]) or '0')
local size = string.len(ARGV[3])
-- An empty relay takes any shard, so that one larger than the limit does not wait for ever.
if used > 0 and used + size > limit then return 'full' end
redis.call('SET', KEYS[2], ARGV[3])
redis.call('INCRBY', KEYS[3], size)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 'stored'
"""
_DISCARD = """
redis.call('HDEL', KEYS[1], ARGV[1])
local size = redis.call('STRLEN', KEYS[2])
redis.call('DEL', KEYS[2])
if size > 0 and redis.call('DECRBY', KEYS[3], size) <= 0 then redis.call('DEL', KEYS[3]) end
"""


class RelayStore(ShardStore):
    """Holds shards up to a limit of bytes, which the producer sets for everybody."""

    def __init__(self, connection: Redis) -> None:
        self.id = RELAY_ID
        self.label = "the Redis relay"
        self._redis = connection
        self._put = connection.register_script(_PUT)
        self._discard = connection.register_script(_DISCARD)

    @property
    def used_bytes(self) -> int:
        """Bytes of all shards in the relay."""
        return int(cast(bytes | None, self._redis.get(_BYTES_KEY)) or 0)

    @property
    def limit_bytes(self) -> int:
        """The largest allowed value of `used_bytes`."""
        return int(cast(bytes | None, self._redis.get(_LIMIT_KEY)) or DEFAULT_LIMIT_BYTES)

    def set_limit(self, limit_bytes: int) -> None:
        """Set the limit for all workers."""
        self._redis.set(_LIMIT_KEY, limit_bytes)

    def put(self, record: Record, shard: bytes) -> PutOutcome:
        namespace = record.task.namespace
        try:
            outcome = self._put(
                keys=[_records_key(namespace), _shard_key(namespace, record.id), _BYTES_KEY, _LIMIT_KEY],
                args=[record.id, encode_record(record), shard, DEFAULT_LIMIT_BYTES],
            )
        except ResponseError as error:
            # Redis itself can be full before the relay is. Before version 7 the script's error is wrapped.
            if not isinstance(error, OutOfMemoryError) and "OOM command" not in str(error):
                raise
            return "full"
        return cast(PutOutcome, outcome.decode())

    def has_record(self, namespace: str, task_id: str) -> bool:
        return bool(self._redis.hexists(_records_key(namespace), task_id))

    def record_ids(self, namespace: str) -> set[str]:
        return {key.decode() for key in cast(list[bytes], self._redis.hkeys(_records_key(namespace)))}

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
            keys=[_records_key(namespace), _shard_key(namespace, task_id), _BYTES_KEY], args=[task_id]
        )

    def put_blob(self, digest: str, data: bytes) -> None:
        self._redis.set(_blob_key(digest), data)

    def has_blob(self, digest: str) -> bool:
        return bool(self._redis.exists(_blob_key(digest)))

    def blob(self, digest: str) -> bytes:
        data = cast(bytes | None, self._redis.get(_blob_key(digest)))
        if data is None:
            raise StoreError(
                f"{self.label} has no blob {digest[:12]}; `producer collect` puts it there again"
            )
        if hashlib.sha256(data).hexdigest() != digest:
            raise ShardCorruptError(f"blob {digest[:12]} in {self.label} was altered")
        return data

    def discard_blob(self, digest: str) -> None:
        self._redis.delete(_blob_key(digest))


def _records_key(namespace: str) -> str:
    return f"bitfleet:records:{namespace}"


def _shard_key(namespace: str, task_id: str) -> str:
    return f"bitfleet:shard:{namespace}:{task_id}"


def _blob_key(digest: str) -> str:
    return f"bitfleet:blob:{digest}"
