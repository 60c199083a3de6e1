"""What a machine sets aside: kinds of tasks that it can't do, for a while, so that it does all the others.

A job's id begins with the kind of its task and its group (`cal-<run>-`, `sen-<sensitivity run>-`), and what
one task of such a group can't do here, none of them can: the next job is chosen by its id, and nothing is
fetched or loaded to find that out. Those set aside keep their place in the queue, for other machines.
"""

import logging
import time
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta, Struct
from redis import Redis
from redis.exceptions import ResponseError
from rq.exceptions import DequeueTimeout

from shared.jobs.task_queue import TaskQueue, is_job_id
from shared.kinds.registry import KINDS

logger = logging.getLogger("bitfleet.worker")

ASIDE_SECONDS = 600.0
"""Then it is tried again: files may have come, memory may be free."""
POLL_SECONDS = 1.0

_NAMES = {kind.prefix: kind.tasks for kind in KINDS.values()}

# The first job that is none of those set aside. It stays where it is: see TaskQueue.lmove.
_FIND = """
local from = 0
while true do
  local ids = redis.call('LRANGE', KEYS[1], from, from + 999)
  if #ids == 0 then
    return false
  end
  for _, id in ipairs(ids) do
    local aside = false
    for _, prefix in ipairs(ARGV) do
      aside = aside or string.sub(id, 1, string.len(prefix)) == prefix
    end
    if not aside then
      return id
    end
  end
  from = from + 1000
end
"""


class Aside(Struct, frozen=True, kw_only=True):
    """One kind of tasks that one machine can't do."""

    host: Annotated[str, Meta(max_length=200)]
    reason: Annotated[str, Meta(max_length=2000)]
    until: float
    """Unix time."""


class SetAside:
    """What the workers of one `worker start` set aside; a process that replaces one knows it from Redis."""

    def __init__(self, connection: Redis, queue_name: str, *, host: str, start_id: str) -> None:
        """`start_id` is that of the `worker start`: another one may have other files, or more memory."""
        self._connection = connection
        self._key = f"bitfleet:aside:{queue_name}"
        self._host = host
        self._start_id = start_id
        self._kinds = self._read()

    def add(self, job_id: str, reason: str) -> None:
        """Leave jobs like this one to other machines for `ASIDE_SECONDS`, and say so."""
        kind = kind_of(job_id)
        aside = Aside(host=self._host, reason=reason[:2000], until=time.time() + ASIDE_SECONDS)
        self._kinds[kind] = aside
        self._write(kind, aside)
        logger.warning(
            "this machine can't do the %s and leaves them to others for %.0f minutes, all else goes on: %s",
            _described(kind),
            ASIDE_SECONDS / 60,
            reason,
        )

    def prefixes(self) -> list[str]:
        """Beginnings of the ids of jobs that are set aside now."""
        now = time.time()
        for kind in [kind for kind, aside in self._kinds.items() if aside.until <= now]:
            del self._kinds[kind]
        return list(self._kinds)

    def reasons(self) -> list[str]:
        """Why, one for each kind that is set aside now."""
        self.prefixes()
        return [aside.reason for aside in self._kinds.values()]

    def _write(self, kind: str, aside: Aside) -> None:
        try:
            self._connection.hset(self._key, f"{self._start_id}:{kind}", msgspec.json.encode(aside))
            self._connection.expire(self._key, int(10 * ASIDE_SECONDS))
        except ResponseError:
            # No hash of ours, or no room: this process knows it even so.
            return

    def _read(self) -> dict[str, Aside]:
        try:
            entries = cast(dict[bytes, bytes], self._connection.hgetall(self._key))
        except ResponseError:
            self._connection.delete(self._key)
            return {}
        kinds = {}
        latest = time.time() + ASIDE_SECONDS
        for name, value in entries.items():
            start_id, _, kind = name.decode("utf-8", "replace").partition(":")
            if start_id != self._start_id:
                continue
            try:
                aside = msgspec.json.decode(value, type=Aside)
            except (msgspec.DecodeError, UnicodeError):
                continue
            # Nothing that stands there may send a machine home for longer than its own word would.
            if aside.until <= latest and kind == kind_of(kind):
                # It will be logged, and a terminal obeys what it is shown.
                reason = "".join(letter for letter in aside.reason if letter.isprintable())
                kinds[kind] = msgspec.structs.replace(aside, reason=reason)
        return kinds


def kind_of(job_id: str) -> str:
    """The beginning of a job's id, up to its group: `cal-0123456789ab-`."""
    return "-".join(job_id.split("-")[:2]) + "-"


def _described(kind: str) -> str:
    name, group, _ = kind.split("-")
    return f"{_NAMES.get(name, 'jobs')} of {group}"


def choosing_queue(aside: SetAside) -> type[TaskQueue]:
    """A queue class that takes the first job that isn't set aside."""

    class ChoosingQueue(TaskQueue):
        @classmethod
        def lmove(cls, connection: Redis, queue_key: str, timeout: int | None) -> Any:
            """The first job as ever while nothing is set aside; else look for one, once a second."""
            prefixes = aside.prefixes()
            if not prefixes:
                return super().lmove(connection, queue_key, timeout)
            find = connection.register_script(_FIND)
            while (job_id := find(keys=[queue_key], args=prefixes)) is not None:
                if is_job_id(job_id):
                    return queue_key, job_id
                connection.lrem(queue_key, 0, job_id)
            if timeout is None:
                return None
            time.sleep(min(timeout, POLL_SECONDS))
            raise DequeueTimeout(timeout, queue_key)

    return ChoosingQueue
