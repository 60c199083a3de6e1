"""The `worker` command. Thin: options in, the supervisor does the rest. No MLX in this process."""

from pathlib import Path

import click

from worker.launch import require_own_shared

require_own_shared()

from shared.cli import explain_errors, redis_url_option  # noqa: E402


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bitfleet")
def main() -> None:
    """Run calibration and sensitivity tasks on this machine."""


@main.command()
@redis_url_option
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes here.")
@click.option(
    "--store",
    metavar="URL",
    envvar="BITFLEET_STORE",
    show_envvar=True,
    help="Where shards go when the run was enqueued with --store: a folder, s3://…, sftp://… "
    "[default: through Redis]",
)
@click.option(
    "--calib-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The run's calibration folder, if this machine sees it: samples are read there, not fetched.",
)
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The checkpoint file that the run was enqueued with, where this machine has it.",
)
@click.option(
    "--memory-limit",
    metavar="SIZE",
    envvar="BITFLEET_MEMORY_LIMIT",
    show_envvar=True,
    help="Of each process, for weights, kept states and passes, as 12GB or 800MB "
    "[default: its share of what Metal recommends, on Linux of what is available]; a run that needs more "
    "is left to other machines",
)
@click.option(
    "--canary-tolerance",
    type=click.FloatRange(0, 1),
    help="How far this machine's answer to a test input may be from the first worker's, relatively "
    "[default: 0.001 in float32, 0.05 in 16 bits]",
)
@click.option("--hedge", is_flag=True, help="When idle, take a second copy of a job that runs for long.")
@click.option(
    "--lease",
    default=45,
    show_default=True,
    type=click.IntRange(2, 3600),
    help="Seconds after which a silent worker's job is given to another.",
)
@click.option(
    "--beat",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.2, 600),
    help="Seconds between two signs of life.",
)
@click.option("--burst", is_flag=True, help="Leave when the queue is empty.")
@click.option("--quiet", is_flag=True, help="Warnings and errors only.")
@click.option("--with-parent", is_flag=True, hidden=True, help="Leave when the starting process is gone.")
@explain_errors
def start(
    redis_url: str,
    workers: int,
    store: str | None,
    calib_dir: Path | None,
    checkpoint: Path | None,
    memory_limit: str | None,
    canary_tolerance: float | None,
    hedge: bool,
    lease: int,
    beat: float,
    burst: bool,
    quiet: bool,
    with_parent: bool,
) -> None:
    """Start workers; they take jobs until told to stop.

    Ctrl-C once finishes the running jobs and leaves; twice hands them back to the queue now. A worker
    that crashes is started again, and its job is given to another after --lease seconds. What this
    machine can't do, for want of memory, disk or files, it leaves to others, and goes on with the rest.
    """
    import logging
    import sys

    from shared.errors import InputError
    from shared.jobs.connection import connect
    from shared.jobs.task_queue import queue_name
    from shared.sizes import parse_size
    from shared.stores.open_store import open_store
    from worker.service.machine import host_name, require_mlx
    from worker.service.options import WorkerOptions
    from worker.service.supervisor import Supervisor

    if beat * 2 > lease:
        raise InputError(
            f"--beat {beat:g} is too slow for --lease {lease}; let it beat at least twice a lease"
        )
    require_mlx()
    # Asked once here, so that a wrong URL is one line and not one from every process.
    queue = queue_name(open_store(store, connect(redis_url)).id)
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO,
        format=f"%(asctime)s {host_name()} %(message)s",
        datefmt="%H:%M:%S",
    )
    options = WorkerOptions(
        redis_url=redis_url,
        store=store,
        calib_dir=str(calib_dir.resolve()) if calib_dir else None,
        checkpoint=str(checkpoint.resolve()) if checkpoint else None,
        memory_limit=parse_size(memory_limit) if memory_limit else None,
        workers_here=workers,
        canary_tolerance=canary_tolerance,
        hedge=hedge,
        lease_seconds=lease,
        beat_seconds=beat,
        burst=burst,
        with_parent=True,
        alone=with_parent,
        log_level="WARNING" if quiet else "INFO",
    )
    sys.exit(Supervisor(options, workers, queue_name=queue, with_parent=with_parent).run())


if __name__ == "__main__":
    main()
