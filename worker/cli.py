"""The `worker` command: reads the options and starts the supervisor. This process never loads MLX."""

from collections.abc import Iterator
from pathlib import Path

import click

from worker.launch import require_own_shared

require_own_shared()

from shared.choices import DEFAULT_MODEL  # noqa: E402
from shared.cli import (  # noqa: E402
    CONTEXT_SETTINGS,
    explain_errors,
    is_quiet,
    redis_url_option,
    version_option,
)


@click.group(context_settings=CONTEXT_SETTINGS)
@version_option
def main() -> None:
    """Run the tasks that a producer has enqueued, on this machine."""


@main.command()
@redis_url_option
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Number of worker processes."
)
@click.option(
    "--store",
    metavar="URL",
    envvar="BITFLEET_STORE",
    show_envvar=True,
    help="Where to leave finished shards: the same --store that the run was enqueued with (a folder, s3://…, "
    "sftp://…). [default: in Redis]",
)
@click.option(
    "--calib-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The run's calibration folder, if this machine can reach it. Samples are then read from there.",
)
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="This machine's copy of the checkpoint that the run was enqueued with.",
)
@click.option(
    "--memory-limit",
    metavar="SIZE",
    envvar="BITFLEET_MEMORY_LIMIT",
    show_envvar=True,
    help="How much memory each worker process may use, such as 12GB. Runs that need more are left to other "
    "machines. [default: what Metal recommends (on Linux: what is free), divided by the number of workers]",
)
@click.option(
    "--canary-tolerance",
    type=click.FloatRange(0, 1),
    help="How much this machine's result for a test input may differ from the other machines' (relative L2). "
    "[default: 0.001 in float32, 0.05 in 16 bits]",
)
@click.option(
    "--hedge/--no-hedge",
    default=True,
    show_default=True,
    help="When idle, start a second copy of a job that is slow on another machine. The first result counts.",
)
@click.option(
    "--lease",
    default=45,
    show_default=True,
    type=click.IntRange(2, 3600),
    help="Seconds without a heartbeat after which a job is given to another worker.",
)
@click.option(
    "--beat",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.2, 600),
    help="Seconds between two heartbeats.",
)
@click.option("--burst", is_flag=True, help="Exit when the queue is empty.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Log for people, or one JSON object a line for machines.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Serve metrics of this machine's workers for Prometheus at this port. Needs '.[metrics]'.",
)
@click.option(
    "--metrics-bind",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="The address of --metrics-port; 0.0.0.0 lets other machines ask.",
)
@click.option("--with-parent", is_flag=True, hidden=True, help="Exit when the parent process has ended.")
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
    log_format: str,
    metrics_port: int | None,
    metrics_bind: str,
    with_parent: bool,
) -> None:
    """Start workers. They take jobs until you stop them.

    Press Ctrl-C once to finish the running jobs and exit, twice to return them to the queue at once. A
    crashed worker is restarted, and its job returns to the queue. Jobs that this machine can't run,
    because memory, disk space or files are missing, are left to other machines.
    """
    import logging
    import sys

    from shared.errors import InputError
    from shared.jobs.connection import connect
    from shared.jobs.task_queue import queue_name
    from shared.logs import log_to_stderr
    from shared.sizes import parse_size
    from shared.stores.open_store import absolute_store, open_store
    from worker.service.machine import host_name, require_mlx
    from worker.service.options import WorkerOptions
    from worker.service.supervisor import Supervisor

    if beat * 2 > lease:
        raise InputError(
            f"--beat {beat:g} is too long for --lease {lease}; it must be at most half of the lease"
        )
    require_mlx()
    store = absolute_store(store)
    # Checked here once, so that a wrong URL gives one error and not one per process.
    queue = queue_name(open_store(store, connect(redis_url)).id)
    level = logging.WARNING if is_quiet() else logging.INFO
    log_to_stderr(level, host_name(), as_json=log_format == "json")
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
        log_level=logging.getLevelName(level),
        log_json=log_format == "json",
    )
    if metrics_port is not None:
        from worker.service.metrics import serve_metrics

        serve_metrics(redis_url, queue, options.start_id, bind=metrics_bind, port=metrics_port)
    sys.exit(Supervisor(options, workers, queue_name=queue, with_parent=with_parent).run())


@main.command()
@click.argument("model", default=DEFAULT_MODEL)
@click.option("--use-t5/--no-t5", default=None, help="Fetch the T5 text encoder. [default: only for FLUX]")
@explain_errors
def fetch(model: str, use_t5: bool | None) -> None:
    """Download MODEL and check its files, before the first task asks for them.

    With a bar for each file. What is there already is only checked. Give --use-t5 if the runs do.
    """
    from worker.service.fetch import fetch_model
    from worker.service.machine import require_mlx

    require_mlx()
    for part, sha256 in fetch_model(model, use_t5=use_t5):
        if not is_quiet():
            click.echo(f"{part.replace('_', ' ')}: sha256 {sha256[:12]}")
    if not is_quiet():
        click.echo(f"{model} is ready on this machine")


@main.command()
@click.option(
    "--full",
    is_flag=True,
    help="Use transformers as wide as published ones. Takes minutes and 4 GB of memory.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON with every figure, to compare machines by.")
@click.option(
    "--first-mac",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Do what docs/first-mac.md asks for, as with --full, run the demo, and write all into this file.",
)
@click.option(
    "--redis-url",
    envvar="REDIS_URL",
    show_envvar=True,
    help="Check this Redis, too. [default: none is checked]",
)
@click.option(
    "--store",
    metavar="URL",
    envvar="BITFLEET_STORE",
    show_envvar=True,
    help="Check this store, too. [default: the relay in Redis]",
)
@click.option(
    "--model", "-m", default=DEFAULT_MODEL, show_default=True, metavar="ID", help="Whose files to look for."
)
@explain_errors
def doctor(
    full: bool,
    as_json: bool,
    first_mac: Path | None,
    redis_url: str | None,
    store: str | None,
    model: str,
) -> None:
    """Check whether this machine can be trusted with work: Python, MLX, what its GPU computes, Redis, disk.

    Nothing is downloaded. Each step of small random models is computed on the GPU and on the CPU and
    compared. Prints a line per check, with its cure; the exit code is 2 if one fails.
    """
    import sys

    from shared.doctor.check import Check
    from shared.doctor.show import show, to_json
    from shared.files import write_atomically
    from shared.models import model_spec
    from worker.doctor.examine import examine

    model_spec(model)
    full = full or first_mac is not None
    checks = []

    def found() -> Iterator[Check]:
        for check in examine(
            full=full, redis_url=redis_url, store=store, model=model, first_mac=first_mac is not None
        ):
            checks.append(check)
            yield check

    code = show(found(), as_json=as_json, full=full)
    if first_mac is not None:
        write_atomically(first_mac, to_json(checks, full=full).encode())
        if not is_quiet():
            click.echo(f"written: {first_mac}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
