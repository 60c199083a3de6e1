"""`producer status`: once, as data, for Prometheus, or kept up to date."""

import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from producer.fleet import Fleet, check_store, open_fleet, store_of
from producer.folder.calib_folder import CalibFolder
from producer.jobs.redis_server import RedisServer
from producer.jobs.who import who_is_there
from producer.ledger import Ledger
from producer.lines import out
from producer.progress.status import MAX_FAILURES, RunStatus, to_json
from producer.progress.survey import look_at_folder, look_at_run
from shared.errors import InputError, RedisUnavailableError
from shared.jobs.connection import connect

PIPE_WIDTH = 200
"""Columns of what no terminal shows."""
PIPE_SECONDS = 10.0
"""Between two lines of --watch where no terminal shows them."""


def status(
    calib_dir: Path, redis_url: str, store_url: str | None, *, named: bool, watch: float | None, form: str
) -> None:
    """Print the state of a run.

    Args:
        calib_dir: its folder.
        redis_url: of Redis.
        store_url: of its store; None for the one that run.json names.
        named: whether somebody named that Redis. Otherwise the folder's own is asked first, and if none
            answers, the folder tells what it knows.
        watch: seconds between two looks; None for a single one.
        form: people, json or prometheus.
    """
    told = None if form == "json" else MAX_FAILURES
    look, fleet = _looker(calib_dir, redis_url, store_url, named, told)
    if watch is not None:
        _watch(look, watch)
    elif form == "json":
        sys.stdout.write(f"{to_json(look())}\n")
    elif form == "prometheus":
        sys.stdout.write(_metrics(look(), fleet))
    else:
        _print(look())


def _looker(
    calib_dir: Path, redis_url: str, store_url: str | None, named: bool, told: int | None
) -> tuple[Callable[[], RunStatus], Fleet | None]:
    folder = CalibFolder(calib_dir)
    if named and folder.read_run() is None:
        # What is wrong with the Redis that was named comes first.
        connect(redis_url).close()
    run = folder.require_run()
    own = RedisServer(folder.state_dir / "redis")
    urls = [own.url, redis_url] if own.is_there and not named else [redis_url]
    for url in urls:
        try:
            fleet = open_fleet(url, store_of(folder, store_url))
        except RedisUnavailableError as error:
            if named:
                raise
            note = f"this is what the folder knows: {error}"
            continue
        check_store(run.store_id, run.store, fleet)
        ledger = Ledger(folder, fleet.connection, fleet.store)
        return partial(look_at_run, folder, ledger, fleet, told=told), fleet
    return partial(look_at_folder, folder, note), None


def _print(status: RunStatus) -> None:
    # Rich is not for those who want data.
    from producer.console import PlainConsole
    from producer.progress.tables import show

    console = PlainConsole()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    # A line that is read by a program stays one.
    console.print(show(status, console.width), soft_wrap=not console.is_terminal)


def _metrics(status: RunStatus, fleet: Fleet | None) -> str:
    if importlib.util.find_spec("prometheus_client") is None:
        raise InputError(
            "--prometheus needs prometheus-client; in bitfleet's folder: pip install '.[metrics]'"
        )
    from producer.progress.exposition import expose

    return expose(status, who_is_there(fleet.connection, fleet.store.id) if fleet else None)


def _watch(look: Callable[[], RunStatus], seconds: float) -> None:
    """Look again and again, until everything is collected or has failed."""
    from rich.live import Live

    from producer.console import PlainConsole
    from producer.progress.tables import plain_line, show

    console = PlainConsole()
    if not console.is_terminal:
        while True:
            status = look()
            out.show(plain_line(status))
            if status.settled:
                return
            time.sleep(max(seconds, PIPE_SECONDS))
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            status = look()
            live.update(show(status, console.width), refresh=True)
            if status.settled:
                return
            time.sleep(seconds)
