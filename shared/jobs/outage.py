"""Retries that tell when Redis goes away and when it is back."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from redis.retry import Retry

from shared.outage import Outage
from shared.safe_url import safe_url, without_secrets

logger = logging.getLogger("bitfleet")

T = TypeVar("T")


def outage_of(url: str) -> Outage:
    """Return what a client's log is told of its Redis."""
    return Outage(f"Redis at {safe_url(url)}", logger.warning)


class TellingRetry(Retry):
    """redis-py's retry, which also tells an `Outage` how it went."""

    def __init__(self, outage: Outage, url: str, *arguments: Any) -> None:
        """`url` is that of Redis; what is secret in it is not told."""
        super().__init__(*arguments)
        self._outage, self._url = outage, url

    def __deepcopy__(self, memo: dict[int, Any]) -> "TellingRetry":
        # Each connection gets a copy, and all of them are one client.
        copy = TellingRetry(self._outage, self._url, self._backoff, self._retries, self._supported_errors)
        memo[id(self)] = copy
        return copy

    def call_with_retry(
        self, do: Callable[[], T], fail: Callable[..., Any], *arguments: Any, **options: Any
    ) -> T:
        """Do something until it works, or until enough is enough."""

        def failed(error: Exception, *rest: Any) -> Any:
            said = without_secrets(str(error), self._url).splitlines() or [type(error).__name__]
            self._outage.failed(said[0])
            return fail(error, *rest)

        done = super().call_with_retry(do, failed, *arguments, **options)
        self._outage.answered()
        return done
