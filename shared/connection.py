"""The one way to a Redis: retries that outlive a restart, one clear line when there is none."""

import re
from urllib.parse import urlsplit, urlunsplit

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from shared.errors import InputError, RedisUnavailableError

WAYS_ON = (
    "start one with `docker compose up -d`, or install and start redis-server, "
    "or do all on this machine with `producer run`"
)

_SECRET = re.compile(r"([^&=]*(?:pass|secret|token|key|credential|signature)[^&=]*)=[^&]*", re.IGNORECASE)


def connect(url: str, *, patient: bool = True) -> Redis:
    """Return a client whose Redis answered just now.

    `patient` clients ride out about two minutes of Redis being down, killed or frozen; others fail at
    once, as a heartbeat must.

    Raises:
        InputError: not a Redis URL.
        RedisUnavailableError: nothing answers, or it refuses us.
    """
    client = _client(url, Retry(NoBackoff(), 0))
    try:
        client.ping()
    except (AuthenticationError, NoPermissionError) as error:
        raise RedisUnavailableError(
            f"Redis at {safe_url(url)} refuses us ({error}); put user and password into the URL: "
            "redis://USER:PASSWORD@HOST:6379"
        ) from None
    except (RedisError, OSError) as error:
        raise RedisUnavailableError(f"no Redis at {safe_url(url)} ({_reason(error)}); {WAYS_ON}") from None
    if not patient:
        return client
    client.close()
    return _client(url, Retry(ExponentialWithJitterBackoff(base=0.1, cap=3), 40))


def _client(url: str, retry: Retry) -> Redis:
    try:
        return Redis.from_url(
            url,
            retry=retry,
            # redis-py retries nothing of a URL's client unless told to.
            retry_on_error=[RedisConnectionError, RedisTimeoutError, BusyLoadingError],
            socket_connect_timeout=5,
            socket_timeout=30,
            health_check_interval=30,
        )
    except ValueError as error:
        raise InputError(
            f"not a Redis URL: {safe_url(url)} ({error}); it looks like redis://HOST:6379 or rediss://…"
        ) from None


def safe_url(url: str) -> str:
    """`url` without its password, for messages and logs."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "(unreadable URL)"
    netloc = parts.netloc
    if parts.password is not None:
        netloc = f"{parts.username or ''}:***@{netloc.rpartition('@')[2]}"
    # redis-py takes a password there, too; of other stores, keys and tokens.
    query = _SECRET.sub(r"\1=***", parts.query)
    safe = parts._replace(netloc=netloc, query=query)
    return url if safe == parts else urlunsplit(safe)


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0].rstrip(".")
