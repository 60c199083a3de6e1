"""Connect to Redis. Clients survive a restart of Redis; errors say in one line what to do."""

import re
import sys
from urllib.parse import urlsplit

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from shared.errors import InputError, RedisUnavailableError
from shared.jobs.mending import MendingRedis
from shared.jobs.outage import TellingRetry, outage_of
from shared.safe_url import PERCENT_ENCODE, is_readable, safe_url, without_secrets

WAYS_ON = (
    "start one with `docker compose up -d`, or install and start redis-server, "
    "or do all on this machine with `producer run`"
)
LOCAL_NETWORK = (
    "macOS blocks this process from the local network: run it from Terminal or ssh, or allow this terminal "
    "under System Settings, Privacy & Security, Local Network"
)
NOT_LISTENING = (
    "nothing listens there: if a Redis runs on that machine, does it listen on the network's address (`bind` "
    "in redis.conf; Homebrew's listens on 127.0.0.1 only)? Else "
)
TRUST = (
    "name the certificate of the authority that signed the server's: rediss://HOST:6379?ssl_ca_certs=/path/ca.crt"
    ", and write HOST as the server's certificate has it"
)

# Stricter than redis-py, which takes a part of a password with / # or ? in it for a host or a port, and
# connects there.
_URL = re.compile(
    r"(?:rediss?://(?:[^/?#]*@)?(?:(?:[\w.~-]+|\[[0-9A-Fa-f:.%]+\])(?::[0-9]{1,5})?)?(?:/[0-9]*)?"
    r"|unix://(?:[^/?#]*@)?/[^?#]*)"
    r"(?:\?[a-z_]+=[^&#]*(?:&[a-z_]+=[^&#]*)*)?"
)


def connect(url: str, *, patient: bool = True) -> Redis:
    """Return a client after checking that its Redis answers.

    With `rediss://` the connection uses TLS. The server's certificate must be valid for the host, and signed
    by an authority that this machine trusts or by the one in the PEM file that the URL names
    (`?ssl_ca_certs=/path/ca.crt`).

    A `patient` client retries for about two minutes while Redis is down or frozen. Other clients fail at
    once, which is what a heartbeat needs. Both reset keys that hold a value of a wrong type.

    Raises:
        InputError: `url` is not a Redis URL.
        RedisUnavailableError: nothing answers, or Redis refuses the connection.
    """
    client = _client(url, Retry(NoBackoff(), 0))
    try:
        client.ping()
    except (AuthenticationError, NoPermissionError) as error:
        raise RedisUnavailableError(
            f"Redis at {safe_url(url)} refuses us ({_reason(error, url)}); put user and password into the "
            "URL: redis://USER:PASSWORD@HOST:6379"
        ) from None
    except TypeError as error:
        # redis-py passes everything after the question mark to its connections without checking it.
        option = f" {str(error).rpartition('argument ')[2]}" if is_readable(url) else " of that name"
        raise InputError(
            f"{safe_url(url)}: redis-py knows no option{option}; an authority's certificate is named by "
            "?ssl_ca_certs=/path/ca.crt"
        ) from None
    except ResponseError as error:
        raise RedisUnavailableError(
            f"Redis at {safe_url(url)} can't be used ({_reason(error, url)}); {_cure(str(error))}"
        ) from None
    except (RedisError, OSError) as error:
        way_on = _advice(url, str(error) or type(error).__name__)
        raise RedisUnavailableError(
            f"no Redis at {safe_url(url)} ({_reason(error, url)}); {way_on}"
        ) from None
    if not patient:
        return client
    client.close()
    # It says when an outage starts and ends.
    return _client(url, TellingRetry(outage_of(url), url, ExponentialWithJitterBackoff(base=0.1, cap=3), 40))


def _client(url: str, retry: Retry) -> Redis:
    if not _URL.fullmatch(url):
        raise _no_url(url, "")
    try:
        return MendingRedis.from_url(
            url,
            retry=retry,
            # Without this, redis-py retries nothing on a client made from a URL.
            retry_on_error=[RedisConnectionError, RedisTimeoutError, BusyLoadingError],
            socket_connect_timeout=5,
            socket_timeout=30,
            health_check_interval=30,
        )
    except (ValueError, TypeError) as error:
        raise _no_url(url, f" ({_reason(error, url)})") from None


def _no_url(url: str, said: str) -> InputError:
    return InputError(
        f"not a Redis URL: {safe_url(url)}{said}; it looks like redis://[USER:PASSWORD@]HOST:6379 or "
        f"rediss://…; {PERCENT_ENCODE}"
    )


LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _reason(error: Exception, url: str) -> str:
    """Return the first line of what is said about `url`, without secrets."""
    text = without_secrets(str(error), url) or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def _cure(reason: str) -> str:
    """Return advice for a Redis that answers with an error."""
    if reason.startswith("MISCONF"):
        return "it can't save to its disk: make room there, or let it write, and look into its log"
    if "DB index" in reason:
        return "name a database that it has, usually 0: redis://HOST:6379/0"
    return "its log and its configuration say more"


def _advice(url: str, reason: str) -> str:
    """Return advice for a Redis that can't be reached.

    TLS on one side only, or too many clients, can look like a closed connection or like silence.
    """
    # Since macOS 15, a process without permission for the local network gets this error.
    if sys.platform == "darwin" and "No route to host" in reason:
        return LOCAL_NETWORK
    if "Connection refused" in reason and urlsplit(url).hostname not in (*LOOPBACK, None):
        return NOT_LISTENING + WAYS_ON
    if "max number of clients" in reason:
        return "it is there, but takes no more clients: raise its maxclients, or stop some"
    if not url.startswith("rediss:"):
        closed = any(words in reason for words in ("reset by peer", "closed by server", "Broken pipe"))
        hung_up = (
            "it hung up: if it speaks TLS, write rediss://; if it has too many clients, raise its maxclients"
        )
        return hung_up if closed else WAYS_ON
    if "certificate has expired" in reason or "certificate is not yet valid" in reason:
        return "renew the server's certificate, or set this machine's clock"
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return TRUST
    if "No such file" in reason or "PEM" in reason or "X509" in reason:
        return "ssl_ca_certs must name a readable file of certificates in PEM"
    if "Timeout" in reason or "WRONG_VERSION" in reason:
        return "if it speaks no TLS, write redis://"
    return WAYS_ON
