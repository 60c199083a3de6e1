"""What happened to a job, attempt by attempt, and how far it is: small notes beside it in Redis."""

from datetime import UTC, datetime
from typing import Literal, cast

import msgspec
from msgspec import Struct
from redis import Redis
from redis.client import Pipeline

from shared.decoding import decode_or_none

MAX_DETAIL = 4000
KEEP_SECONDS = 30 * 24 * 3600

Outcome = Literal["started", "failed", "crashed", "handed back"]


class Event(Struct, frozen=True, kw_only=True):
    """One line of a job's history."""

    outcome: Outcome
    host: str
    worker: str
    detail: str = ""
    """Traceback, signal, or why."""
    at: str = ""
    """UTC, ISO 8601."""


class Progress(Struct, frozen=True, kw_only=True):
    """How far a running job is."""

    text: str
    host: str
    worker: str


_event_decoder = msgspec.json.Decoder(Event)
_progress_decoder = msgspec.json.Decoder(Progress)


def utc_now() -> str:
    """Now, in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def add_event(connection: Redis, job_id: str, event: Event) -> None:
    """Append to a job's history; long details keep their end, where a traceback says what."""
    with connection.pipeline() as pipeline:
        push_event(pipeline, job_id, event)
        pipeline.execute()


def push_event(pipeline: Pipeline, job_id: str, event: Event) -> None:
    """As `add_event`, as a part of something larger: the caller executes the pipeline."""
    stamped = msgspec.structs.replace(event, at=event.at or utc_now(), detail=event.detail[-MAX_DETAIL:])
    pipeline.rpush(_history_key(job_id), msgspec.json.encode(stamped))
    pipeline.ltrim(_history_key(job_id), -20, -1)
    pipeline.expire(_history_key(job_id), KEEP_SECONDS)


def crash_event(connection: Redis, job_id: str, worker: str, detail: str) -> Event:
    """Say that `worker` died in a job; its host is the one that the job's history names."""
    hosts = [event.host for event in read_events(connection, job_id) if event.worker == worker]
    return Event(outcome="crashed", host=hosts[-1] if hosts else "", worker=worker, detail=detail)


def read_events(connection: Redis, job_id: str) -> list[Event]:
    """A job's history, oldest first; what can't be read is left out."""
    lines = cast(list[bytes], connection.lrange(_history_key(job_id), 0, -1))
    return [event for line in lines if (event := decode_or_none(_event_decoder, line)) is not None]


def forget_events(connection: Redis | Pipeline, job_ids: list[str]) -> None:
    """A done job's history is of no interest, nor is a fresh one's past."""
    if job_ids:
        connection.delete(*map(_history_key, job_ids))


def set_progress(connection: Redis, queue: str, job_id: str, progress: Progress) -> None:
    """Say how far a job is."""
    connection.hset(_progress_key(queue), job_id, msgspec.json.encode(progress))


def clear_progress(connection: Redis, queue: str, job_id: str) -> None:
    """The job is over, well or not."""
    connection.hdel(_progress_key(queue), job_id)


def read_progress(connection: Redis, queue: str) -> dict[str, Progress]:
    """Job id to progress; entries of crashed workers stay until their job ends, so look at in_flight too."""
    lines = cast(dict[bytes, bytes], connection.hgetall(_progress_key(queue)))
    return {
        job_id.decode("utf-8", "replace"): progress
        for job_id, line in lines.items()
        if (progress := decode_or_none(_progress_decoder, line)) is not None
    }


def _history_key(job_id: str) -> str:
    return f"bitfleet:history:{job_id}"


def _progress_key(queue: str) -> str:
    return f"bitfleet:progress:{queue}"
