"""Checks of what a worker needs around it: Redis and its rights, clock, store, disk, model files."""

import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from humanfriendly import format_size
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from shared.doctor.check import Check, ok
from shared.errors import BitfleetError
from shared.jobs.connection import connect
from shared.models import model_spec
from shared.stores.open_store import open_store

SLOW_SECONDS = 0.1
CLOCK_SECONDS = 5.0
OLDEST_REDIS = (6, 2)
RELAY_BYTES = 2 * 10**9
"""The relay at its default limit, and as much for what Redis keeps beside it while it is written."""
DISK_BYTES = 5 * 10**9
"""Room for state files and logs, beside what a model needs."""


def check_redis(url: str | None, store_url: str | None, *, store_id: str | None = None) -> Iterator[Check]:
    """Check Redis, and with it the store; both only if they are named.

    Args:
        url: of Redis.
        store_url: of the store; None for the relay.
        store_id: of the store that a run was enqueued with; None if any will do.
    """
    if url is None:
        yield Check(
            name="Redis", outcome="skipped", found="none was named; give --redis-url or set REDIS_URL"
        )
        return
    try:
        client = connect(url, patient=False)
    except BitfleetError as error:
        problem, _, cure = str(error).partition("; ")
        yield Check(name="Redis", outcome="failed", found=problem, cure=cure)
        return
    with client:
        yield _latency(client)
        try:
            yield from _server(client)
            yield _rights(client)
            yield _clock(client)
        except NoPermissionError as error:
            yield Check(
                name="Redis rights",
                outcome="failed",
                found=str(error),
                cure="give this user the rights that docs/redis-users.acl lists",
            )
        yield _store(client, store_url, store_id)


def _latency(client: Redis) -> Check:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        client.ping()
        times.append(time.perf_counter() - started)
    middle = median(times)
    return Check(
        name="Redis",
        outcome="warning" if middle > SLOW_SECONDS else "ok",
        found=f"answers in {1000 * middle:.1f} ms",
        cure="use a cable, or a Redis that is nearer" if middle > SLOW_SECONDS else "",
        figures={"seconds": middle},
    )


def _server(client: Redis) -> Iterator[Check]:
    about = client.info()
    version = str(about.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        yield Check(
            name="Redis version",
            outcome="failed",
            found=f"Redis {version}",
            cure=f"install Redis {'.'.join(map(str, OLDEST_REDIS))} or newer",
        )
    else:
        yield ok("Redis version", f"Redis {version}")
    if not about.get("aof_enabled"):
        yield Check(
            name="Redis persistence",
            outcome="warning",
            found="no append-only file: if Redis is killed, it forgets what was enqueued",
            cure="set `appendonly yes` in redis.conf; docker-compose.yml does",
        )
    else:
        yield ok("Redis persistence", "an append-only file is kept")
    policy = str(about.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        yield Check(
            name="Redis memory",
            outcome="failed",
            found=f"with maxmemory-policy {policy} a full Redis deletes jobs and shards",
            cure="set `maxmemory-policy noeviction` in redis.conf",
        )
    used, most = int(about.get("used_memory", 0)), int(about.get("maxmemory", 0))
    tight = 0 < most < used + RELAY_BYTES
    yield Check(
        name="Redis room",
        outcome="warning" if tight else "ok",
        found=f"{format_size(used)} in use, {f'at most {format_size(most)}' if most else 'no limit'}",
        cure="raise its maxmemory, or give a smaller --relay-limit" if tight else "",
        figures={"used_bytes": float(used), "limit_bytes": float(most)},
    )


def _rights(client: Redis) -> Check:
    """Do what a worker does, on a key of this check's own."""
    key = f"bitfleet:doctor:{secrets.token_hex(8)}"
    with client.pipeline() as commands:
        commands.set(key, "1", ex=60)
        commands.get(key)
        commands.delete(key)
        commands.hset(key, "field", "1")
        commands.zadd(f"{key}:set", {"member": 1})
        commands.zrem(f"{key}:set", "member")
        commands.delete(key)
        commands.execute()
    client.register_script("return 1")()
    return ok("Redis rights", "keys can be written, read and deleted, and scripts run")


def _clock(client: Redis) -> Check:
    seconds, microseconds = client.time()
    ahead = time.time() - (seconds + microseconds / 1e6)
    wrong = abs(ahead) > CLOCK_SECONDS
    return Check(
        name="Clock",
        outcome="warning" if wrong else "ok",
        found=f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} Redis' clock",
        cure="set the clock by the network; until then the times in logs are wrong" if wrong else "",
        figures={"seconds_ahead": ahead},
    )


def _store(client: Redis, store_url: str | None, store_id: str | None) -> Check:
    try:
        store = open_store(store_url, client)
    except (BitfleetError, RedisError, OSError) as error:
        problem, _, cure = str(error).partition("; ")
        return Check(name="Store", outcome="failed", found=problem, cure=cure)
    if store_id not in (None, store.id):
        return Check(
            name="Store",
            outcome="failed",
            found=f"{store.label} is not the store of this folder's run",
            cure="give the --store that it was enqueued with",
        )
    return ok("Store", f"{store.label} is there")


def check_disk(home: Path) -> Iterator[Check]:
    """Check the room on the disk of a folder."""
    free = shutil.disk_usage(home).free
    short = free < DISK_BYTES
    yield Check(
        name="Disk",
        outcome="warning" if short else "ok",
        found=f"{format_size(free)} are free in {home}",
        cure=f"make room: workers need {format_size(DISK_BYTES)} beside the model's files" if short else "",
        figures={"free_bytes": float(free)},
    )


def check_model_files(model: str, cache: Path) -> Iterator[Check]:
    """Check whether a model was downloaded; whole and unaltered files are checked when they are loaded.

    Args:
        model: its id.
        cache: the folder of Hugging Face's downloads.
    """
    spec = model_spec(model)
    folder = cache / f"models--{model.replace('/', '--')}"
    if spec.built_in:
        yield ok("Model files", f"{model} is part of bitfleet")
    elif any(folder.glob("snapshots/*/*.safetensors")):
        yield ok("Model files", f"{model} is in {cache}")
    else:
        yield Check(
            name="Model files",
            outcome="warning",
            found=f"{model} is not on this machine; its transformer is {format_size(spec.weight_bytes)}",
            cure="`worker fetch` downloads it, or else the first task; a gated model wants its licence "
            "accepted on huggingface.co and `hf auth login` first",
        )
