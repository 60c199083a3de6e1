"""The one door through which keys are read: a value of a wrong type is deleted, said once, and worked around.

A key may hold something else than its readers expect: an older revision, a slip of the hand, or somebody who
should not have the password. Redis then refuses every command on it (`WRONGTYPE`). Nothing in Redis is
worth a worker's life: a lost job, record or shard is found missing and done again.
"""

import logging
import re
from collections.abc import Iterable
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import ResponseError

from shared.printable import printable

logger = logging.getLogger("bitfleet")

FAMILIES: dict[str, str] = {
    r"bitfleet:aside:.*": "hash",
    r"bitfleet:avoid:.*": "string",
    r"bitfleet:blob:.*": "string",
    r"bitfleet:canary:.*": "hash",
    r"bitfleet:claims:.*": "hash",
    r"bitfleet:delayed:.*": "zset",
    r"bitfleet:given-up:.*": "zset",
    r"bitfleet:grace:.*": "string",
    r"bitfleet:history:.*": "list",
    r"bitfleet:looked:.*": "string",
    r"bitfleet:orders:.*": "hash",
    r"bitfleet:progress:.*": "hash",
    r"bitfleet:reconcile:.*": "string",
    r"bitfleet:records:.*": "hash",
    r"bitfleet:relay:(blobs|used)": "hash",
    r"bitfleet:relay:limit": "string",
    r"bitfleet:runs:.*": "set",
    r"bitfleet:shard:.*": "string",
    r"bitfleet:turns:.*": "zset",
    r"rq:execution:.*": "hash",
    r"rq:executions:.*": "zset",
    r"rq:job:[^:]*": "hash",
    r"rq:queue:.*": "list",
    r"rq:queues": "set",
    r"rq:results:.*": "stream",
    r"rq:worker:[^:]*": "hash",
    r"rq:worker:[^:]*:executions": "set",
    r"rq:workers(:.*)?": "set",
    r"rq:(wip|finished|failed|deferred|scheduled|canceled):.*": "zset",
}
"""The type of each family of keys. What is not listed here is left alone."""

_FAMILIES = [(re.compile(pattern, re.DOTALL), kind) for pattern, kind in FAMILIES.items()]
_WRONG_TYPE = "WRONGTYPE"
_MAX_KEY_BYTES = 500
# Keys may be spoilt one after the other while a command is sent again.
_TRIES = 20

# ARGV: the type of each key, as it should be. Returns the places of the keys that were deleted.
_RESET = """
local reset = {}
for place, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'none' and kind ~= ARGV[place] then
    redis.call('DEL', key)
    reset[#reset + 1] = place
  end
end
return reset
"""


def type_of(key: str) -> str | None:
    """Return the Redis type that a key should have; None if it is not one of ours."""
    return next((kind for pattern, kind in _FAMILIES if pattern.fullmatch(key)), None)


def reset_misfits(redis: Redis, keys: Iterable[str]) -> list[str]:
    """Delete those of the keys that hold a value of a wrong type, say so, and return them."""
    wanted = {key: kind for key in keys if (kind := type_of(key))}
    if not wanted:
        return []
    names = list(wanted)
    places = cast(list[int], redis.register_script(_RESET)(keys=names, args=[*wanted.values()]))
    misfits = [names[place - 1] for place in places]
    for name in misfits:
        say_reset(name)
    return misfits


def say_reset(key: str) -> None:
    """Log that a key was reset."""
    logger.warning(
        "%s in Redis was no %s: it is reset, and what is lost by that is done again",
        printable(key),
        type_of(key),
    )


class MendingRedis(Redis):
    """A client that resets keys of a wrong type and sends the command again."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command; while one of its keys has a wrong type, reset the key and send it once more."""
        for _ in range(_TRIES):
            try:
                return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
            except ResponseError as error:
                if not is_wrong_type(error) or not _is_mendable(self, args):
                    raise
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        """Return a pipeline that does the same for each of its commands."""
        return _MendingPipeline(self, transaction, shard_hint)


class _MendingPipeline(Pipeline):
    def __init__(self, client: MendingRedis, transaction: bool, shard_hint: Any) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, shard_hint)
        self._client = client

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        stack = list(self.command_stack)
        results = super().execute(raise_on_error=False)
        for place, result in enumerate(results):
            if isinstance(result, ResponseError) and is_wrong_type(result):
                results[place] = self._again(*stack[place])
            if raise_on_error and isinstance(results[place], Exception):
                raise results[place]
        return results

    def _again(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        # The others were done all the same, as in any transaction of Redis.
        try:
            return self._client.execute_command(*args, **options)
        except ResponseError as still:
            return still


def is_wrong_type(error: ResponseError) -> bool:
    """Return whether a command failed over the type of a key. Before Redis 7 a script's error is wrapped."""
    return _WRONG_TYPE in str(error)


def _is_mendable(redis: Redis, args: tuple[Any, ...]) -> bool:
    """Reset what does not fit among the keys of a command. All that looks like a key is looked at.

    False when none of them is ours. It does not matter who reset a key: another client may be quicker.
    """
    texts = [_text(arg) for arg in args[1:] if isinstance(arg, (str, bytes)) and len(arg) <= _MAX_KEY_BYTES]
    ours = [text for text in texts if type_of(text)]
    reset_misfits(redis, ours)
    return bool(ours)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
