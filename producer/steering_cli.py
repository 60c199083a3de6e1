"""The commands that steer a run or a fleet: they read the options and make one call."""

from pathlib import Path

import click

from producer.cli_options import calib_dir_option, store_option
from shared.cli import explain_errors, redis_url_option


@click.command()
@click.argument("what", nargs=-1, metavar="[WHAT]...")
@click.option("--all", "everything", is_flag=True, help="The whole run.")
@calib_dir_option
@store_option
@redis_url_option
@explain_errors
def cancel(
    what: tuple[str, ...], everything: bool, calib_dir: Path, store: str | None, redis_url: str
) -> None:
    """Stop wanting tasks: those that wait vanish, those that run are dropped.

    A worker drops a task at its next check, some seconds later. What is finished stays. The folder notes
    what was cancelled, in cancelled.json: no `producer collect` enqueues it again, and one that waits
    counts it and ends, with exit code 3. `producer retry`, or a new enqueue, asks for it again.

    WHAT is the name of a part (calibration, sketch, an id), or a task's id or label; `*` stands for any text:

    \b
    producer cancel sensitivity          all exact measurements
    producer cancel '*final_layer*'      those of one layer
    producer cancel --all                everything of this folder
    """
    from producer import fleet
    from producer.steering import commands as steering

    steering.cancel(calib_dir, fleet.open_fleet_of(calib_dir, redis_url, store), what, everything=everything)


@click.command()
@click.argument("what", nargs=-1, metavar="[WHAT]...")
@click.option("--all", "everything", is_flag=True, help="Cancelled tasks, too.")
@calib_dir_option
@store_option
@redis_url_option
@explain_errors
def retry(
    what: tuple[str, ...], everything: bool, calib_dir: Path, store: str | None, redis_url: str
) -> None:
    """Enqueue failed tasks again, with a new history.

    Without WHAT these are all that failed. With WHAT, a part or tasks as in `producer cancel`, they are
    those of it that failed or were cancelled.
    """
    from producer import fleet
    from producer.steering import commands as steering

    steering.retry(calib_dir, fleet.open_fleet_of(calib_dir, redis_url, store), what, cancelled=everything)


@click.command()
@click.argument("what", nargs=-1, metavar="[WHAT]...")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a list of objects: task, label, part, and events (outcome, host, worker, start, detail, at).",
)
@calib_dir_option
@store_option
@redis_url_option
@explain_errors
def failures(
    what: tuple[str, ...], as_json: bool, calib_dir: Path, store: str | None, redis_url: str
) -> None:
    """Show every failed task with all that happened to it: when, on which host, and the traceback.

    WHAT narrows it to a part or tasks, as in `producer cancel`. Changes nothing.
    """
    from producer import fleet
    from producer.steering import commands as steering

    steering.failures(calib_dir, fleet.open_fleet_of(calib_dir, redis_url, store), what, as_json=as_json)


@click.command()
@store_option
@redis_url_option
@explain_errors
def pause(store: str | None, redis_url: str) -> None:
    """Let all workers finish their job and wait, until `producer resume`.

    It concerns every run that waits in this Redis for the same store. Workers keep the model in memory for
    five minutes, and start no other job. Collecting goes on.
    """
    from producer import fleet
    from producer.steering import commands as steering

    steering.pause(fleet.open_fleet(redis_url, store))


@click.command()
@store_option
@redis_url_option
@explain_errors
def resume(store: str | None, redis_url: str) -> None:
    """Let a paused fleet go on."""
    from producer import fleet
    from producer.steering import commands as steering

    steering.resume(fleet.open_fleet(redis_url, store))


@click.command()
@click.argument("host")
@click.option("--undo", is_flag=True, help="Let that machine work again.")
@store_option
@redis_url_option
@explain_errors
def drain(host: str, undo: bool, store: str | None, redis_url: str) -> None:
    """Let one machine's workers finish their job and leave; `worker start` there ends.

    HOST is its name as in `producer status`. A `worker start` there leaves again at once until --undo is
    given; then it has to be started again.
    """
    from producer import fleet
    from producer.steering import commands as steering

    steering.drain(fleet.open_fleet(redis_url, store), host, undo=undo)


@click.command()
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a list of objects: run, model, folder, host, since, seen, queued, running, failed, finished, "
    "shard_bytes, blob_bytes, namespaces, blobs.",
)
@store_option
@redis_url_option
@explain_errors
def runs(as_json: bool, store: str | None, redis_url: str) -> None:
    """List every run that has anything in this Redis or store: whose it is, how much, since when.

    The largest comes first. It needs no calibration folder, and changes nothing.
    """
    from producer import fleet
    from producer.steering import commands as steering

    steering.runs(fleet.open_fleet(redis_url, store), as_json=as_json)


@click.command()
@click.argument("run")
@click.option("--yes", "-y", is_flag=True, help="Don't ask.")
@store_option
@redis_url_option
@explain_errors
def forget(run: str, yes: bool, store: str | None, redis_url: str) -> None:
    """Delete all that Redis and the store hold of a run: jobs, histories, records, shards, samples.

    For a run whose calibration folder is gone, or that nobody wants any more. RUN is its id as in `producer
    runs`, or its beginning; `unclaimed` is what belongs to no run. What was finished but not collected is
    lost; what was collected stays in its folder.
    """
    from producer import fleet
    from producer.steering import commands as steering

    steering.forget(fleet.open_fleet(redis_url, store), run, yes=yes)
