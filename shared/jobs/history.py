"""The history of each job (its attempts) and its progress, kept in Redis."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, cast

import msgspec
from msgspec import Struct
from redis import Redis
from redis.client import Pipeline

from shared.decoding import decode_or_none

MAX_DETAIL = 4000
MAX_EVENTS = 100
KEEP_SECONDS = 30 * 24 * 3600

Outcome = Literal["started", "failed", "crashed", "timed out", "killed", "silent", "handed back"]
"""What each of the endings means for the job: see worker/jobs/verdict.py."""


class Event(Struct, frozen=True, kw_only=True):
    """One line of a job's history."""

    outcome: Outcome
    host: str
    worker: str
    start: str = ""
    """The `worker start` that the worker belongs to."""
    detail: str = ""
    """A traceback, a signal or another reason."""
    at: str = ""
    """UTC, ISO 8601."""


class Progress(Struct, frozen=True, kw_only=True):
    """The progress of a running job."""

    text: str
    host: str
    worker: str


_AT_ONCE = 500
"""So many histories are read at once, after which others have their turn."""

# KEYS: of histories. Returns each in one text, an event a line: JSON has no line breaks of its own.
_HISTORIES = """
local texts = {}
for place, key in ipairs(KEYS) do
  texts[place] = table.concat(redis.call('LRANGE', key, 0, -1), '\\n')
end
return texts
"""

_event_decoder = msgspec.json.Decoder(Event)
_progress_decoder = msgspec.json.Decoder(Progress)


def utc_now() -> str:
    """Return the current time in UTC, as ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def add_event(connection: Redis, job_id: str, event: Event) -> None:
    """Append to a job's history. Of a long detail the end is kept, which names the error of a traceback."""
    with connection.pipeline() as pipeline:
        push_event(pipeline, job_id, event)
        pipeline.execute()


def push_event(pipeline: Pipeline, job_id: str, event: Event) -> None:
    """Like `add_event`, within a pipeline that the caller executes."""
    stamped = msgspec.structs.replace(event, at=event.at or utc_now(), detail=event.detail[-MAX_DETAIL:])
    pipeline.rpush(_history_key(job_id), msgspec.json.encode(stamped))
    pipeline.ltrim(_history_key(job_id), -MAX_EVENTS, -1)
    pipeline.expire(_history_key(job_id), KEEP_SECONDS)


def read_events(connection: Redis, job_id: str) -> list[Event]:
    """Return a job's history, oldest event first. Unreadable entries are left out."""
    return read_histories(connection, [job_id])[0]


def read_histories(connection: Redis, job_ids: Sequence[str]) -> list[list[Event]]:
    """Return the histories of many jobs at once, in their order; see `read_events`."""
    script = connection.register_script(_HISTORIES)
    answers: list[bytes] = []
    for start in range(0, len(job_ids), _AT_ONCE):
        keys = [_history_key(job_id) for job_id in job_ids[start : start + _AT_ONCE]]
        answers += cast(list[bytes], script(keys=keys))
    return [
        [event for line in lines.split(b"\n") if (event := decode_or_none(_event_decoder, line)) is not None]
        for lines in answers
    ]


def forget_events(connection: Redis | Pipeline, job_ids: list[str]) -> None:
    """Delete the history of jobs that are done or enqueued anew."""
    if job_ids:
        connection.delete(*map(_history_key, job_ids))


def set_progress(connection: Redis, queue: str, job_id: str, progress: Progress) -> None:
    """Store a job's progress."""
    connection.hset(progress_key(queue), job_id, msgspec.json.encode(progress))


def clear_progress(connection: Redis, queue: str, job_id: str) -> None:
    """Delete the progress of a job that has ended."""
    connection.hdel(progress_key(queue), job_id)


def read_progress(connection: Redis, queue: str) -> dict[str, Progress]:
    """Return progress by job id.

    After a crash, an entry stays until its job ends. Use only those of jobs that are running.
    """
    lines = cast(dict[bytes, bytes], connection.hgetall(progress_key(queue)))
    return {
        job_id.decode("utf-8", "replace"): progress
        for job_id, line in lines.items()
        if (progress := decode_or_none(_progress_decoder, line)) is not None
    }


def _history_key(job_id: str) -> str:
    return f"bitfleet:history:{job_id}"


def progress_key(queue: str) -> str:
    """Return the key of the progress of a queue's running jobs."""
    return f"bitfleet:progress:{queue}"
