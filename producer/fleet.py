"""The fleet that a command works with: a Redis and a store, found by options and by the folder's run.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from humanfriendly import format_size
from redis import Redis

from producer.folder.calib_folder import CalibFolder
from shared.errors import InputError, RedisUnavailableError, StoreError, WrongStoreError
from shared.jobs.connection import connect
from shared.safe_url import HIDDEN, safe_url
from shared.sizes import parse_size
from shared.stores.open_store import absolute_store, open_store
from shared.stores.relay_store import MIN_LIMIT_BYTES, RelayStore
from shared.stores.store import ShardStore

if TYPE_CHECKING:
    from producer.cost import Gate


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The connection to Redis and the store that a command works with."""

    connection: Redis
    store: ShardStore
    store_url: str | None


def open_fleet(
    redis_url: str, store_url: str | None, relay_limit: str | None = None, *, create: bool = False
) -> Fleet:
    """Connect to Redis and to the store. With `create`, a folder that is no store yet becomes one.

    Raises:
        InputError: the relay limit is not valid.
        WrongStoreError: there is no store at the URL, and `create` is False.
    """
    limit = _relay_limit(relay_limit) if relay_limit is not None else None
    connection = connect(redis_url)
    store_url = absolute_store(store_url)
    store = open_store(store_url, connection, create=create)
    if limit and isinstance(store, RelayStore):
        store.set_limit(limit)
    return Fleet(connection=connection, store=store, store_url=store_url)


def open_fleet_of(
    calib_dir: Path, redis_url: str, store_url: str | None, relay_limit: str | None = None
) -> Fleet:
    """Connect to Redis, and to the store that is given or that the folder's run.json names.

    Raises:
        InputError: as `store_of` does, or the relay limit is not valid.
        WrongStoreError: there is no store at the URL.
    """
    return open_fleet(redis_url, store_of(CalibFolder(calib_dir), store_url), relay_limit)


def fleet_to_ask(
    gate: "Gate", calib_dir: Path, redis_url: str, store_url: str | None, relay_limit: str | None
) -> Fleet | None:
    """Return `open_fleet_of`; for a dry run, which changes nothing, what is there of it.

    Returns:
        None for a dry run where Redis or the store can't be had; the gate is told why.
    """
    if not gate.dry_run:
        return open_fleet_of(calib_dir, redis_url, store_url, relay_limit)
    return _look_for_fleet(gate, redis_url, store_of(CalibFolder(calib_dir), store_url), relay_limit)


def fleet_to_ask_for_run(
    gate: "Gate", calib_dir: Path, redis_url: str, store_url: str | None, relay_limit: str | None
) -> Fleet | None:
    """The same for `open_fleet_for_run`."""
    if not gate.dry_run:
        return open_fleet_for_run(calib_dir, redis_url, store_url, relay_limit)
    return _look_for_fleet(gate, redis_url, absolute_store(store_url), relay_limit)


def _look_for_fleet(
    gate: "Gate", redis_url: str, store_url: str | None, relay_limit: str | None
) -> Fleet | None:
    gate.relay_limit = _relay_limit(relay_limit) if relay_limit is not None else None
    try:
        return open_fleet(redis_url, store_url)
    except WrongStoreError:
        gate.unknown = f"no store at {safe_url(store_url or '')}"
    except (RedisUnavailableError, StoreError) as error:
        gate.unknown = str(error).partition(" (")[0]
    return None


def _relay_limit(text: str) -> int:
    limit = parse_size(text)
    if limit < MIN_LIMIT_BYTES:
        raise InputError(
            f"--relay-limit {text} is {format_size(limit)}, too little for the shards of one image; "
            f"give {format_size(MIN_LIMIT_BYTES)} or more, such as 1GB"
        )
    return limit


def open_fleet_for_run(
    calib_dir: Path, redis_url: str, store_url: str | None, relay_limit: str | None
) -> Fleet:
    """Connect to enqueue a run. A folder that is no store yet becomes one.

    This is the only place that creates stores. A store that this run has used before is not created again:
    if it is missing, its share is not mounted or the URL has a typo.

    Raises:
        InputError: `calib_dir` can't be written, or the relay limit is not valid.
        WrongStoreError: the run's store is missing.
    """
    folder = CalibFolder(calib_dir)
    folder.check_writable()
    run = folder.read_run()
    store_url = absolute_store(store_url)
    # Folders that an earlier revision wrote name the user, too.
    known = (
        run is not None
        and None not in (run.store, store_url)
        and (safe_url(run.store or "") == safe_url(store_url or ""))
    )
    return open_fleet(redis_url, store_url, relay_limit, create=not known)


def store_of(folder: CalibFolder, store_url: str | None) -> str | None:
    """Return the URL of a run's store: the given one, else the one that run.json names.

    Raises:
        InputError: run.json names it without the user or the password that it was enqueued with.
    """
    named = folder.require_run().store
    if store_url is not None or named is None:
        return store_url
    if HIDDEN in named:
        raise InputError(f"run.json keeps no password: give the --store of this run, {named}, with it")
    return named


def check_store(store_id: str, label: str | None, fleet: Fleet | None) -> None:
    """Check that a command was given the store of the run; a dry run may have none.

    Raises:
        WrongStoreError: it was given another.
    """
    if fleet is not None and store_id != fleet.store.id:
        wanted = f"--store {label}" if label else "no --store (the Redis relay)"
        raise WrongStoreError(f"this run was enqueued with {wanted}; give the same")
