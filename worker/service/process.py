"""One worker process. The supervisor starts it, with its options in the environment."""

import logging
import sys
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from shared.errors import BitfleetError, RedisUnavailableError, StoreTroubleError, WrongStoreError
from shared.jobs.connection import connect
from shared.jobs.redis_time import redis_time
from shared.jobs.task_queue import queue_name
from shared.logs import log_to_stderr
from shared.stores.open_store import open_store
from worker.jobs.failures import REDIS_IS_FULL
from worker.jobs.lease_worker import LeaseWorker
from worker.jobs.other_queues import waiting_for_others
from worker.service.compile_cache import use_own_compile_cache
from worker.service.machine import host_name, installed_versions
from worker.service.options import WorkerOptions, cache_dir, new_worker_name
from worker.service.parent import leave_with_parent
from worker.service.runtime import Runtime

logger = logging.getLogger("bitfleet.worker")

EXIT_REFUSED = 2
EXIT_TROUBLE = 69
EXIT_BROKEN = 70
EXIT_DRAINED = 71
MAX_CLOCK_SECONDS = 10.0
LEAVE_SECONDS = 15.0
"""How long this process may take to hand its job back once its supervisor is gone. If it is killed then, the
job comes back when its lease runs out."""


def main() -> int:
    """Work until told to stop; return the exit code."""
    options = WorkerOptions.from_environment()
    name = options.name or new_worker_name(host_name())
    log_to_stderr(logging.WARNING, name, as_json=options.log_json)
    logger.setLevel(options.log_level)
    if options.with_parent:
        leave_with_parent(LEAVE_SECONDS)
    use_own_compile_cache()
    try:
        return _work(options, name)
    except OutOfMemoryError:
        logger.error(REDIS_IS_FULL)
        return EXIT_TROUBLE
    # A store that is not the run's, or none, may be a share that is not mounted yet.
    except (RedisUnavailableError, StoreTroubleError, WrongStoreError, RedisError) as error:
        logger.error("%s", error)
        return EXIT_TROUBLE
    except BitfleetError as error:
        logger.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _work(options: WorkerOptions, name: str) -> int:
    connection = connect(options.redis_url)
    if warning := clock_warning(connection):
        logger.warning("%s", warning)
    store = open_store(options.store, connection)
    host, queue = host_name(), queue_name(store.id)
    for line in waiting_for_others(connection, queue):
        logger.warning("%s", line)
    runtime = Runtime(
        store=store,
        host=host,
        worker=name,
        cache_dir=cache_dir(),
        checkpoint=Path(options.checkpoint) if options.checkpoint else None,
        calib_dir=Path(options.calib_dir) if options.calib_dir else None,
        memory_limit=options.memory_limit,
        workers_here=options.workers_here,
        connection=connection,
        canary_tolerance=options.canary_tolerance,
    )
    worker = LeaseWorker(
        queue,
        connection=connection,
        beat_connection=connect(options.redis_url, patient=False),
        functions=runtime.functions,
        host=host,
        name=name,
        lease_seconds=options.lease_seconds,
        beat_seconds=options.beat_seconds,
        hedge=options.hedge,
        start_id=options.start_id,
        alone=options.alone,
        when_idle=runtime.rest,
        versions=installed_versions(),
    )
    logger.info("ready: queue %s, shards go to %s", queue, store.label)
    worker.work(burst=options.burst, logging_level="WARNING")
    if worker.fatal:
        logger.error("this machine can't serve the run and leaves: %s", worker.fatal)
        return EXIT_REFUSED
    if worker.drained:
        logger.warning(
            "this machine was drained, with `producer drain %s`: leaving; with --undo there, and a new "
            "`worker start` here, it works again",
            host,
        )
        return EXIT_DRAINED
    if worker.broken:
        logger.error("the GPU failed: this process leaves for a new one")
        return EXIT_BROKEN
    if options.burst and (reasons := worker.set_aside.reasons()):
        logger.error("what this machine can't do is left in the queue: %s", "; ".join(reasons))
        return EXIT_REFUSED
    return 0 if worker.exited_cleanly else EXIT_BROKEN


def clock_warning(connection: Redis) -> str | None:
    """Return a warning if this machine's clock differs much from that of Redis.

    Leases go by Redis' clock alone. This machine's stands in records and histories, and decides whether a
    certificate is valid.
    """
    difference = time.time() - redis_time(connection)
    if abs(difference) <= MAX_CLOCK_SECONDS:
        return None
    return (
        f"this machine's clock is {abs(difference):.0f} s {'ahead of' if difference > 0 else 'behind'} "
        "that of Redis: let both set it by the network; the work goes on, with wrong times in its records"
    )


if __name__ == "__main__":
    sys.exit(main())
