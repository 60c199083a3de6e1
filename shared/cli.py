"""What both command lines share: one-line errors, options that mean the same everywhere."""

import errno
import functools
import sys
from collections.abc import Callable
from typing import Any

import click

REDIS_URL_HELP = (
    "Redis, as redis://[USER:PASSWORD@]HOST:PORT or rediss://… for TLS. A process list shows options to "
    "everybody on the machine: give a URL with a password as REDIS_URL."
)
DEFAULT_REDIS_URL = "redis://localhost:6379"


class OneLineError(click.ClickException):
    """An error of ours, in one line, with its own exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code  # type: ignore[misc]


def redis_url_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--redis-url, or REDIS_URL."""
    return click.option(
        "--redis-url",
        envvar="REDIS_URL",
        default=DEFAULT_REDIS_URL,
        show_default=True,
        show_envvar=True,
        help=REDIS_URL_HELP,
    )(function)


def debug_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--debug: the traceback of an error, too."""
    return click.option("--debug", is_flag=True, help="Show the traceback of an error.")(function)


def explain_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what a user can mend into one line and exit code 2; `--debug` shows the rest."""

    @functools.wraps(function)
    def wrapper(*args: Any, debug: bool, **kwargs: Any) -> Any:
        # Imported here: `--help` must answer at once.
        from redis.exceptions import RedisError

        from shared.errors import BitfleetError

        try:
            return function(*args, **kwargs)
        except (BitfleetError, RedisError, OSError) as error:
            if debug:
                raise
            raise OneLineError(_one_line(error), getattr(error, "exit_code", 2)) from None

    return debug_option(wrapper)


def _one_line(error: Exception) -> str:
    from redis.exceptions import NoPermissionError, OutOfMemoryError, RedisError

    if isinstance(error, OutOfMemoryError) or "OOM command" in str(error):
        return (
            "Redis is full (its maxmemory is reached): run `producer collect` to empty the relay, or give "
            "Redis more memory; nothing was lost"
        )
    if isinstance(error, NoPermissionError):
        return f"Redis refuses this user: {error}; give it the rights that docs/redis-users.acl lists"
    if isinstance(error, RedisError):
        return f"Redis: {error}; start the same command again once Redis is back, nothing was lost"
    if isinstance(error, OSError) and error.filename:
        more = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            more = "; nothing that was finished is lost: mend that and start the same command again"
        return f"{error.filename}: {error.strerror}{more}"
    return str(error) or type(error).__name__


def interactive() -> bool:
    """Whether somebody watches standard error."""
    return sys.stderr.isatty()
