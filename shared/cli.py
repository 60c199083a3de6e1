"""What both command lines share: errors of one line, and options with the same meaning in both."""

import errno
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from shared.printable import printable

REDIS_URL_HELP = (
    "URL of Redis: redis://[USER:PASSWORD@]HOST:PORT, or rediss://… for TLS. Other users of this machine can "
    "see the options of a running command, so set REDIS_URL instead if the URL holds a password."
)
DEFAULT_REDIS_URL = "redis://localhost:6379"
CONTEXT_SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "auto_envvar_prefix": "BITFLEET",
}
"""Of both commands. Each option of each command can be set in the environment: docs/options.md."""


def version_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --version. It alone is not read from the environment: BITFLEET_VERSION says other things there."""
    return click.version_option(package_name="bitfleet", allow_from_autoenv=False)(function)


class OneLineError(click.ClickException):
    """An error that is printed in one line and ends the command with the given exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(printable(" ".join(message.split())))
        self.exit_code = exit_code  # type: ignore[misc]


def redis_url_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --redis-url (or REDIS_URL) and --redis-url-file to a command."""
    function = click.option(
        "--redis-url",
        envvar="REDIS_URL",
        default=DEFAULT_REDIS_URL,
        show_default=True,
        show_envvar=True,
        callback=_url_or_file,
        help=REDIS_URL_HELP,
    )(function)
    return click.option(
        "--redis-url-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read_url,
        help="Read the URL from this file instead. Only you may have access to it (chmod 600).",
    )(function)


def _read_url(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    if path.stat().st_mode & 0o077:
        raise click.BadParameter(
            f"other users can read {path}, which holds a password; run: chmod 600 {path}"
        )
    url = path.read_text(errors="replace").strip()
    if not url or len(url.splitlines()) > 1:
        raise click.BadParameter(f"{path} must hold exactly one line: the URL of Redis")
    context.meta["redis_url"] = url


def _url_or_file(context: click.Context, parameter: click.Parameter, url: str) -> str:
    given: str | None = context.meta.get("redis_url")
    if given is None:
        return url
    if context.get_parameter_source("redis_url") is ParameterSource.COMMANDLINE:
        raise click.BadParameter("give --redis-url or --redis-url-file, not both")
    return given


def is_named(context: click.Context) -> bool:
    """Return whether the user named a Redis: by option, file or environment."""
    source = context.get_parameter_source("redis_url")
    return "redis_url" in context.meta or source is not ParameterSource.DEFAULT


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --quiet and --debug (or -v) to a command; `is_quiet` tells of the first, `debug` of the other."""
    function = click.option(
        "-v", "--verbose", "--debug", "debug", is_flag=True, help="Show the traceback of an error."
    )(function)
    return click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_be_quiet,
        help="Print warnings, errors and what was asked for only.",
    )(function)


def _be_quiet(context: click.Context, parameter: click.Parameter, quiet: bool) -> None:
    context.meta["quiet"] = quiet


def is_quiet() -> bool:
    """Return whether the command that runs now was given --quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get("quiet"))


def explain_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Print errors that a user can fix in one line and exit with code 2. Adds --quiet and --debug."""

    @functools.wraps(function)
    def wrapper(*args: Any, debug: bool, **kwargs: Any) -> Any:
        # Imported here, so that `--help` answers at once.
        from redis.exceptions import RedisError

        from shared.errors import BitfleetError

        try:
            return function(*args, **kwargs)
        except (BitfleetError, RedisError, OSError) as error:
            if debug:
                raise
            raise OneLineError(_one_line(error), getattr(error, "exit_code", 2)) from None

    return output_options(wrapper)


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
        advice = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            advice = "; nothing that was finished is lost: mend that and start the same command again"
        return f"{error.filename}: {error.strerror}{advice}"
    return str(error) or type(error).__name__
