"""The commands about plans, one function each: they call the library and print the outcome."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from humanfriendly import format_size
from rich.table import Table

from producer.commands import say_enqueued
from producer.console import PlainConsole
from producer.cost import Gate
from producer.fleet import Fleet, check_store
from producer.folder.calib_folder import CalibFolder
from producer.lines import err, out
from producer.plan.enqueue import enqueue_confirm as ask_for_predictions
from producer.plan.enqueue import enqueue_levels as ask_for_levels
from producer.plan.planner import PlanOptions, make_plans
from producer.plan.prompt_sets import prompt_file
from producer.plan.scores import Thirds
from producer.plan.step_time import read_times
from producer.plan.targets import Target, like, max_error, target_bpw, target_mb
from producer.plan.write import write_plan
from producer.progress.words import counted
from producer.report.write import write_report
from shared.errors import InputError
from shared.files import write_atomically
from shared.metrics import BUCKETS
from shared.plan import Choice
from shared.plan_file import Plan, encode_plan, read_plan
from shared.printable import printable


def enqueue_levels(
    calib_dir: Path,
    fleet: Fleet | None,
    *,
    bits: Sequence[int],
    group_sizes: Sequence[int],
    images: int,
    prompt_csv: Path | None,
    prompt_column: str,
    gate: Gate | None = None,
) -> None:
    """Enqueue weight errors and levels, and print the outcome."""
    folder = CalibFolder(calib_dir, _tell)
    run = folder.require_run()
    check_store(run.store_id, run.store, fleet)
    asked = [{"bits": width, "group_size": size} for width in bits for size in group_sizes]
    candidates = msgspec.convert(asked, list[Choice])
    request, weights_id, reconciled = ask_for_levels(
        folder,
        fleet,
        candidates=candidates,
        images=images,
        file=prompt_file(prompt_csv, prompt_column, run),
        gate=gate,
    )
    widths = ", ".join(map(str, bits))
    out.print(f"weights {weights_id}: {widths} bits in groups of {', '.join(map(str, group_sizes))}")
    say_enqueued(reconciled[0], "task")
    if request is not None:
        out.print(f"levels {request.settings.id}: {counted(len(request.prompts), 'image')}")
        say_enqueued(reconciled[1], "image")


def _tell(line: str) -> None:
    err.show(line)


def targets_of(
    bpw: Sequence[float], megabytes: Sequence[float], errors: Sequence[float], models: Sequence[str]
) -> list[Target]:
    """Return all targets that were given as options.

    Raises:
        InputError: there is none, or one is no target.
    """
    targets = [
        *map(target_bpw, bpw),
        *map(target_mb, megabytes),
        *map(max_error, errors),
        *map(like, models),
    ]
    if not targets:
        raise InputError(
            "say how large: --target-bpw 4.5, --target-mb 1200, --like uniform:4 or --max-error 0.1"
        )
    return targets


def plan(
    calib_dir: Path,
    *,
    targets: Sequence[Target],
    buckets: str | None,
    step_times: Path | None,
    out_file: Path | None,
    prompt_csv: Path | None,
    prompt_column: str,
    **options: Any,
) -> None:
    """Make plans, write them and print a table."""
    if out_file is not None and len(targets) > 1:
        raise InputError("--out takes one plan, and several targets are given; they are all in plans/")
    if (options["max_step_time"] is None) != (step_times is None):
        raise InputError("--max-step-time and --step-times go together")
    folder = CalibFolder(calib_dir, _tell)
    plans = make_plans(
        folder,
        PlanOptions(
            targets=targets,
            prompts=prompt_file(prompt_csv, prompt_column, folder.require_run()),
            thirds=parse_buckets(buckets),
            step_times=read_times(step_times) if step_times else None,
            **options,
        ),
    )
    with folder.locked("plan"):
        for made in plans:
            write_plan(folder, made)
        write_report(folder)
    if out_file is not None:
        write_atomically(out_file, encode_plan(plans[0]))
    print_plans(plans)
    for made in plans:
        out.print(f"plan {made.id}: {out_file or folder.plan_path(made.id)}")
    sets, measured = plans[0].prompts, plans[0].scores.images
    if measured < len(sets.scores):
        _tell(f"the scores are of {measured} of {len(sets.scores)} images; the others are not collected yet")
    out.print(
        f"prompts: {len(sets.scores)} for the scores, {len(sets.choosing)} for choosing, "
        f"{len(sets.prediction)} for the prediction, {len(sets.proof)} for the proof"
    )


def parse_buckets(text: str | None) -> Thirds:
    """Return the weights of `early=1,mid=1,late=2`; those that are not named are 1.

    Raises:
        InputError: this is no such list.
    """
    weights = dict.fromkeys(BUCKETS, 1.0)
    for part in (text or "").split(",") if text else []:
        name, _, number = part.strip().partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if name not in weights or not 0 <= weight < float("inf"):
            raise InputError(f"--buckets {text!r}: write early=1,mid=1,late=2")
        weights[name] = weight
    if not any(weights.values()):
        raise InputError("--buckets leaves no third of the steps; give one a weight above 0")
    early, mid, late = weights.values()
    return early, mid, late


def print_plans(plans: Sequence[Plan]) -> None:
    """Print a line for each plan."""
    names = ("plan", "bits a weight", "size", "error", "gap", "for")
    table = Table(*names, box=None, pad_edge=False)
    for column in table.columns[1:-1]:
        column.justify = "right"
    for made in plans:
        table.add_row(
            printable(made.id),
            f"{made.bits_per_weight:.3f}",
            format_size(made.stored_bytes),
            f"{100 * made.score**0.5:.3g}%",
            "< 0.01%" if made.gap < 1e-4 else f"{100 * made.gap:.2f}%",
            printable(made.target),
        )
    PlainConsole().print(table)
    out.print("error: of the output, relative, by the scores that the plans were chosen by, and so too good")


def enqueue_confirm(
    calib_dir: Path, fleet: Fleet | None, paths: Sequence[Path], gate: Gate | None = None
) -> None:
    """Enqueue the predictions of some plans, and print the outcome."""
    folder = CalibFolder(calib_dir, _tell)
    run = folder.require_run()
    check_store(run.store_id, run.store, fleet)
    request, reconciled = ask_for_predictions(folder, fleet, [read_plan(path) for path in paths], gate)
    out.print(f"confirm {request.settings.id}: {', '.join(request.names)} on {len(request.prompts)} prompts")
    say_enqueued(reconciled, "image")
