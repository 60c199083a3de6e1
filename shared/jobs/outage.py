"""Tells when Redis goes away and when it is back, to whoever waits for it."""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from redis.retry import Retry

from shared.printable import printable
from shared.safe_url import safe_url, without_secrets

logger = logging.getLogger("bitfleet")

TELL_SECONDS = 2.0
"""A single broken connection is no outage: one is told of once it has lasted this long."""

T = TypeVar("T")


class Outage:
    """One client's view of its Redis: there, or away since when."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`url` is that of Redis; what is secret in it is not told."""
        self._url = url
        self._clock = clock
        self._since: float | None = None
        self._told = False

    def failed(self, error: Exception) -> None:
        """Note that Redis did not answer."""
        now = self._clock()
        if self._since is None:
            self._since = now
        elif not self._told and now - self._since >= TELL_SECONDS:
            self._told = True
            said = without_secrets(str(error), self._url).splitlines() or [type(error).__name__]
            logger.warning(
                "Redis at %s does not answer (%s); trying on, nothing is lost",
                safe_url(self._url),
                printable(said[0]),
            )

    def answered(self) -> None:
        """Note that it did."""
        since, told = self._since, self._told
        self._since, self._told = None, False
        if told and since is not None:
            logger.warning(
                "Redis at %s answers again, after %.0f s", safe_url(self._url), self._clock() - since
            )


class TellingRetry(Retry):
    """redis-py's retry, which also tells an `Outage` how it went."""

    def __init__(self, outage: Outage, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._outage = outage

    def __deepcopy__(self, memo: dict[int, Any]) -> "TellingRetry":
        # Each connection gets a copy, and all of them are one client.
        copy = TellingRetry(self._outage, self._backoff, self._retries, self._supported_errors)
        memo[id(self)] = copy
        return copy

    def call_with_retry(
        self, do: Callable[[], T], fail: Callable[..., Any], *arguments: Any, **options: Any
    ) -> T:
        """Do something until it works, or until enough is enough."""

        def failed(error: Exception, *rest: Any) -> Any:
            self._outage.failed(error)
            return fail(error, *rest)

        done = super().call_with_retry(do, failed, *arguments, **options)
        self._outage.answered()
        return done
