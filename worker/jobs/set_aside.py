"""What a machine sets aside: kinds of tasks that it can't do, for a while, so that it does all the others.

A job's id begins with the kind of its task and its group (`cal-<run>-`, `sen-<sensitivity run>-`), and what
one task of such a group can't do here, none of them can: the next job is chosen by its id, and nothing is
fetched or loaded to find that out. Those set aside keep their place in the queue, for other machines.
"""

import logging
import time
from dataclasses import dataclass

import msgspec
from redis import Redis
from redis.exceptions import ResponseError

from shared.jobs.asides import ASIDE_SECONDS, Aside, asides_key, describe_kind, kind_of_job, read_asides
from shared.jobs.redis_time import redis_time

logger = logging.getLogger("bitfleet.worker")


@dataclass(frozen=True, slots=True)
class _Kept:
    reason: str
    until: float
    """On this process' monotonic clock."""


class SetAside:
    """What the workers of one `worker start` set aside; a process that replaces one knows it from Redis."""

    def __init__(self, connection: Redis, queue_name: str, *, host: str, start_id: str) -> None:
        """`start_id` is that of the `worker start`: another one may have other files, or more memory."""
        self._connection = connection
        self._queue_name = queue_name
        self._host = host
        self._start_id = start_id
        self._kinds = self._read()

    def add(self, job_id: str, reason: str, seconds: float = ASIDE_SECONDS) -> None:
        """Leave jobs like this one to other machines for so long, and say so."""
        kind = kind_of_job(job_id)
        self._kinds[kind] = _Kept(reason, time.monotonic() + seconds)
        self._write(kind, reason[:2000], seconds)
        logger.warning(
            "this machine can't do the %s and leaves them to others for %s, all else goes on: %s",
            describe_kind(kind),
            f"{seconds / 60:.0f} minutes" if seconds >= 60 else f"{seconds:.0f} s",
            reason,
        )

    def prefixes(self) -> list[str]:
        """Beginnings of the ids of jobs that are set aside now."""
        now = time.monotonic()
        for kind in [kind for kind, kept in self._kinds.items() if kept.until <= now]:
            del self._kinds[kind]
        return list(self._kinds)

    def reasons(self) -> list[str]:
        """Why, one for each kind that is set aside now."""
        self.prefixes()
        return [kept.reason for kept in self._kinds.values()]

    def _write(self, kind: str, reason: str, seconds: float) -> None:
        key = asides_key(self._queue_name)
        try:
            until = redis_time(self._connection) + seconds
            aside = Aside(host=self._host, reason=reason, until=until)
            self._connection.hset(key, f"{self._start_id}:{kind}", msgspec.json.encode(aside))
            self._connection.expire(key, int(10 * ASIDE_SECONDS))
        except ResponseError:
            # No hash of ours, or no room: this process knows it even so.
            return

    def _read(self) -> dict[str, _Kept]:
        now = redis_time(self._connection)
        return {
            entry.kind: _Kept(entry.aside.reason, time.monotonic() + entry.aside.until - now)
            for entry in read_asides(self._connection, self._queue_name, now)
            if entry.start_id == self._start_id
        }
