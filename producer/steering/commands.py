"""The commands of steering, one function each: they call the library and print the outcome."""

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from humanfriendly import format_size

from producer.fleet import Fleet, check_store
from producer.folder.calib_folder import CalibFolder
from producer.lines import err, out
from producer.progress.words import counted, retry_hint
from producer.steering import halt
from producer.steering.cancel import cancel as cancel_tasks
from producer.steering.failures import Failure
from producer.steering.failures import failures as failed_tasks
from producer.steering.forget import forget as forget_run
from producer.steering.retry import retry as retry_tasks
from producer.steering.room import age, describe
from producer.steering.runs import UNCLAIMED, RunContent, find_run
from producer.steering.runs import runs as all_runs
from shared.errors import InputError
from shared.printable import printable


def cancel(calib_dir: Path, fleet: Fleet, patterns: Sequence[str], *, everything: bool) -> None:
    """Cancel tasks and print how many."""
    if bool(patterns) == everything:
        raise InputError(
            "say what to cancel: parts or tasks by name, such as calibration or 'image 1*'; or "
            "--all, which is the whole run"
        )
    folder = _folder(calib_dir, fleet)
    done = cancel_tasks(folder, fleet, patterns)
    out.print(
        f"{counted(done.cancelled, 'task')} cancelled: {done.queued} were queued, {done.running} running, "
        "which their workers drop at the next check"
        if done.cancelled or done.running
        else "nothing to cancel"
    )
    for count, what in (
        (done.before, "cancelled before"),
        (done.finished, "finished, which stays"),
        (done.failed, "failed"),
    ):
        if count:
            out.print(f"{counted(count, 'task')} {what}")
    if done.cancelled:
        out.print(retry_hint(patterns))


def retry(calib_dir: Path, fleet: Fleet, patterns: Sequence[str], *, cancelled: bool) -> None:
    """Enqueue failed tasks again, and cancelled ones if they are meant, and print how many."""
    folder = _folder(calib_dir, fleet)
    done = retry_tasks(folder, fleet, patterns, cancelled=cancelled or bool(patterns))
    if not done.failed + done.cancelled:
        there = len(folder.cancelled.read())
        hint = f"; {counted(there, 'task')} of this folder are cancelled: {retry_hint([])}" if there else ""
        out.print(f"nothing to retry: none of these tasks has failed{hint}")
        return
    out.print(f"{done.failed} failed and {done.cancelled} cancelled tasks enqueued again")


def failures(calib_dir: Path, fleet: Fleet, patterns: Sequence[str], *, as_json: bool) -> None:
    """Print the failed tasks with their histories."""
    found = failed_tasks(_folder(calib_dir, fleet), fleet, patterns)
    if as_json:
        _print_json([failure for batch in found for failure in batch])
        return
    count = 0
    for batch in found:
        count += len(batch)
        out.show("\n".join(map(_told, batch)))
    failed = f"{counted(count, 'task')} failed; `producer retry` enqueues them again"
    out.show(failed if count else "no task has failed")


def _told(failure: Failure) -> str:
    hosts = ", ".join(failure.hosts) or "no host"
    attempts = counted(len(failure.attempts), "attempt")
    lines = [f"{failure.label} ({failure.task}, {failure.part}): {attempts} on {hosts}"]
    for event in failure.events:
        head, *rest = event.detail.rstrip().splitlines() or [""]
        where = printable(f"{event.host or '?'} {event.worker}", 200)
        lines.append(f"  {printable(event.at, 40)} {where}: {event.outcome}{': ' if head else ''}{head}")
        lines += [f"      {line}" for line in rest]
    return "\n".join(lines)


def pause(fleet: Fleet) -> None:
    """Pause the fleet and print how many workers that concerns."""
    new = halt.pause(fleet)
    busy = [worker for worker in halt.workers_of(fleet) if worker.state == "busy"]
    out.print("the fleet is paused" if new else "the fleet was paused already")
    if busy:
        names = ", ".join(sorted(worker.name for worker in busy))
        out.print(f"{counted(len(busy), 'worker')} will finish the present job first: {names}")
    out.print("`producer resume` lets it go on")


def resume(fleet: Fleet) -> None:
    """Let the fleet go on."""
    out.print("the fleet goes on" if halt.resume(fleet) else "the fleet was not paused")


def drain(fleet: Fleet, host: str, *, undo: bool) -> None:
    """Let a machine leave, or work again."""
    shown = printable(host, 80)
    if undo:
        halt.undo_drain(fleet, host)
        out.print(f"{shown} may work again: give `worker start` there, if its workers have left")
        return
    new = halt.drain(fleet, host)
    here = [worker for worker in halt.workers_of(fleet) if worker.host == host]
    leaving = f"{counted(len(here), 'worker')} there will leave after the present job"
    out.print(f"{shown} is drained{'' if new else ' already'}: {leaving}")
    out.print(f"`producer drain --undo {shown}` lets it work again")


def runs(fleet: Fleet, *, as_json: bool) -> None:
    """Print what every run has there."""
    found = all_runs(fleet)
    if as_json:
        _print_json(found)
        return
    if not found:
        out.show(f"{fleet.store.label} and its queue hold nothing")
    for run in found:
        name = "unclaimed" if run.run == UNCLAIMED else f"run {printable(run.run, 80)}"
        model = f" of {printable(run.model)}" if run.model else ""
        out.show(f"{name}{model}: {_contents(run)}")
        if run.run == UNCLAIMED:
            out.show("  samples that no run here needs; `producer forget unclaimed` deletes them")
        elif run.folder is None:
            out.show("  its folder is not known: an older revision enqueued it, or Redis lost the note")
        else:
            ages = f"enqueued {age(run.since)} ago, last looked at {age(run.seen)} ago"
            out.show(f"  {printable(run.folder)} on {printable(run.host or '?')}, {ages}")


def forget(fleet: Fleet, name: str, *, yes: bool) -> None:
    """Delete all that Redis and the store hold of a run, once somebody has agreed."""
    found = all_runs(fleet)
    run = find_run(found, name)
    seen = f", last looked at {age(run.seen)} ago" if run.folder is not None else ""
    (out.print if yes else out.show)(f"{describe(run)}{seen}: {_contents(run)}")
    if not yes:
        try:
            agreed = click.confirm("Delete all of that? What was collected stays in its folder.", err=True)
        except click.Abort:
            raise InputError("nothing was deleted: nobody answered; --yes answers the question") from None
        if not agreed:
            out.print("nothing was deleted")
            return
    forget_run(fleet, run, found)
    out.print(f"forgotten, {format_size(run.size)} are free")
    if run.folder is not None:
        out.print("`producer collect` in that folder asks for it again, unless `producer cancel --all` did")


def _contents(run: RunContent) -> str:
    counts = ((run.queued, "queued"), (run.running, "running"), (run.failed, "failed"))
    parts = [f"{count} {what}" for count, what in counts if count]
    if run.finished:
        parts.append(f"{run.finished} finished, to be collected ({format_size(run.shard_bytes)})")
    if run.blob_bytes:
        parts.append(f"samples for the workers ({format_size(run.blob_bytes)})")
    return ", ".join(parts) or "nothing but the note that it is wanted"


def _folder(calib_dir: Path, fleet: Fleet) -> CalibFolder:
    folder = CalibFolder(calib_dir, err.show)
    run = folder.require_run()
    check_store(run.store_id, run.store, fleet)
    return folder


def _print_json(content: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(content), indent=2))
