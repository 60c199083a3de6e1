"""The `producer` command: reads the options and makes one call.

Slow modules are imported inside the commands, so that `--help` answers at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from producer import models_cli, plan_cli, proof_cli, steering_cli
from producer.cli_options import (
    DEFAULT_BITS_TEXT,
    Bits,
    calib_dir_option,
    cost_options,
    relay_limit_option,
    store_option,
)
from shared.choices import (
    DEFAULT_GROUP_SIZE,
    DEFAULT_MAX_IMAGES,
    DEFAULT_MODEL,
    DEFAULT_NUM_IMAGES,
    DEFAULT_PROBES,
    DEFAULT_STEPS_PER_IMAGE,
    GROUP_SIZES,
)
from shared.cli import CONTEXT_SETTINGS, REDIS_URL_HELP, explain_errors, redis_url_option, version_option

if TYPE_CHECKING:
    from producer.cost import Gate
    from shared.choices import SampleFiles

SENSITIVITY_NAMES = (
    "bits",
    "group_size",
    "max_images",
    "step_stride",
    "layers",
    "method",
    "probes",
    "verify",
    "until",
    "precision",
)
EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


drop_finished_option = click.option(
    "--drop-finished",
    is_flag=True,
    help="Drop finished images of a run with other settings that this folder held before, if none of them is "
    "collected yet. Without this, the command refuses.",
)
samples_option = click.option(
    "--samples",
    type=click.Choice(["all", "needed", "none"]),
    help="Which steps of an image get a file in samples/ once it is collected: all; those that are measured "
    "on by default; or none. Unless all do, the image's shard is kept, which takes a fraction, and `producer "
    "samples` writes the rest. Given again, it changes what is collected from then on. [default: as before "
    "in this folder, else all]",
)
calibration_options = _options(
    click.option(
        "--num-images",
        default=DEFAULT_NUM_IMAGES,
        show_default=True,
        type=click.IntRange(1, 100_000),
        help="How many images to draw.",
    ),
    click.option(
        "--num-steps",
        "--steps",
        "num_steps",
        type=click.IntRange(1, 1000),
        help="Denoising steps per image. [default: what the model recommends: 50 for SD3 medium, 28 for "
        "SD3.5-large, 4 for FLUX.1-schnell]",
    ),
    click.option(
        "--cfg-weight",
        type=click.FloatRange(0, 100),
        help="Strength of classifier-free guidance. [default: what the model recommends: 7.5 for SD3 medium, "
        "3.5 for SD3.5-large; FLUX has none]",
    ),
    click.option(
        "--prompt-csv",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The prompts, in UTF-8: a .csv or .tsv with a column `prompt`, a .txt with one prompt a line, "
        "or COCO captions (.json). Image i takes the i-th prompt. [default: all_prompts.csv; the demo model "
        "brings its own]",
    ),
    click.option(
        "--prompt-column",
        default="prompt",
        show_default=True,
        metavar="NAME",
        help="Which column of a .csv or .tsv holds the prompts: `Prompt` in PartiPrompts, `Prompts` in "
        "DrawBench.",
    ),
    click.option(
        "--seed",
        default=0,
        show_default=True,
        type=click.IntRange(0, 2**32 - 1),
        help="Random seed of image 0. Image i uses this number plus i.",
    ),
    click.option(
        "--image-size",
        type=click.IntRange(16, 4096),
        help="Width and height of the images in pixels, a multiple of 16. [default: the model's own]",
    ),
    click.option(
        "--model",
        "-m",
        default=DEFAULT_MODEL,
        show_default=True,
        metavar="ID",
        help="The model to measure. docs/models.md lists all; `demo` and `tiny-sd3` need no download.",
    ),
    click.option(
        "--checkpoint",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Your own transformer weights, in the file layout of the model's publisher.",
    ),
    click.option(
        "--guidance",
        type=click.FloatRange(0, 100),
        help="Input of the guidance embedding (FLUX.1-dev only). [default: 3.5]",
    ),
    click.option(
        "--reference",
        type=click.Choice(["published", "diffusionkit"]),
        help="Which forward pass to run: the one its publishers describe, or DiffusionKit's, which differs "
        "by a few percent (docs/models.md). [default: published; diffusionkit for the demo model]",
    ),
    click.option("--use-t5/--no-t5", default=None, help="Use the T5 text encoder. [default: only for FLUX]"),
)
sensitivity_options = _options(
    click.option(
        "--bits",
        type=Bits(),
        default=DEFAULT_BITS_TEXT,
        show_default=True,
        help="Bit widths to measure for each layer.",
    ),
    click.option(
        "--group-size",
        type=click.Choice([str(size) for size in GROUP_SIZES]),
        default=str(DEFAULT_GROUP_SIZE),
        show_default=True,
        help="How many weights share one scale and one bias.",
    ),
    click.option(
        "--max-images",
        type=click.IntRange(1),
        help=f"How many of the images to measure on, from the first. [default: {DEFAULT_MAX_IMAGES}]",
    ),
    click.option(
        "--step-stride",
        type=click.IntRange(1),
        help="Measure on every N-th step only; 1 takes all. "
        f"[default: leaves about {DEFAULT_STEPS_PER_IMAGE} steps per image]",
    ),
    click.option(
        "--layers",
        default="*",
        show_default=True,
        metavar="GLOB",
        help="Layers to measure: patterns of dotted MLX paths, separated by commas. A sketch always measures "
        "all layers.",
    ),
    click.option(
        "--method",
        type=click.Choice(["exact", "sketch"]),
        default="exact",
        show_default=True,
        help="exact: run the model once for each layer and bit width. sketch: estimate all of them at once "
        "from a few backward passes per sample.",
    ),
    click.option(
        "--probes",
        type=click.IntRange(1, 64),
        default=DEFAULT_PROBES,
        show_default=True,
        help="Random probes per sample (sketch only). More probes make the estimates more precise.",
    ),
    click.option(
        "--verify",
        type=click.IntRange(0),
        default=0,
        help="After a sketch, measure this many (layer, bits) exactly: those whose uncertainty matters most. "
        "[default: 0]",
    ),
    click.option(
        "--until",
        type=click.FloatRange(0, 100, min_open=True),
        metavar="PERCENT",
        help="Stop an exact measurement early, once the 95% interval of its relative error is this narrow.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["float32", "model"]),
        default="float32",
        show_default=True,
        help="Number format for exact measurements: float32, or the model's own, which is faster on some "
        "machines but whose rounding hides small errors. The stored weights are the same.",
    ),
)


@click.group(context_settings=CONTEXT_SETTINGS)
@version_option
def main() -> None:
    """Find out how many bits each layer of a diffusion transformer needs.

    \b
    producer enqueue-calibration --num-images 100    ask for images
    worker start                                     run this on every Mac
    producer collect --wait                          fetch the samples
    producer enqueue-sensitivity                     ask for measurements
    producer collect --wait                          fetch them, write results and report

    \b
    producer enqueue-levels                          ask for what plans are made of
    producer collect --wait                          fetch it
    producer plan --like uniform:4                   choose bits and group size of each layer

    `producer run` draws, measures and reports on one machine. Every command can be repeated safely:
    finished work is kept, and lost work is enqueued again.

    Exit codes: 0 everything is there, 2 an error, 3 something is still missing, 130 interrupted.
    """


@main.command("enqueue-calibration")
@calibration_options
@drop_finished_option
@samples_option
@calib_dir_option
@store_option
@relay_limit_option
@redis_url_option
@cost_options
@explain_errors
def enqueue_calibration(
    calib_dir: Path,
    store: str | None,
    relay_limit: str | None,
    redis_url: str,
    drop_finished: bool,
    samples: "SampleFiles | None",
    gate: "Gate",
    **options: Any,
) -> None:
    """Enqueue one task per image. Workers draw the image and keep every denoising step."""
    from producer import commands
    from producer.fleet import fleet_to_ask_for_run

    settings, prompts = commands.read_settings(**options)
    fleet = fleet_to_ask_for_run(gate, calib_dir, redis_url, store, relay_limit)
    commands.enqueue_calibration(
        calib_dir,
        settings,
        prompts,
        options["num_images"],
        fleet,
        drop_finished=drop_finished,
        samples=samples,
        gate=gate,
    )
    commands.say_if_nobody_works(fleet)


@main.command("enqueue-sensitivity")
@sensitivity_options
@calib_dir_option
@store_option
@relay_limit_option
@redis_url_option
@cost_options
@explain_errors
def enqueue_sensitivity(
    calib_dir: Path, store: str | None, relay_limit: str | None, redis_url: str, gate: "Gate", **options: Any
) -> None:
    """Enqueue the measurements: how much the output changes when one layer is quantized.

    With --method exact, each (layer, bits) is one task; with --method sketch, each sample is one.
    """
    from producer import commands
    from producer.fleet import fleet_to_ask

    fleet = fleet_to_ask(gate, calib_dir, redis_url, store, relay_limit)
    commands.enqueue_sensitivity(calib_dir, fleet, gate=gate, **options)
    commands.say_if_nobody_works(fleet)


@main.command()
@click.option(
    "--watch", is_flag=True, help="Look again and again, until everything is there; Ctrl-C ends it."
)
@click.option(
    "--interval",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.5, 3600),
    help="Seconds between two looks of --watch.",
)
@click.option("--json", "form", flag_value="json", help="Print JSON; docs/status.schema.json describes it.")
@click.option(
    "--prometheus", "form", flag_value="prometheus", help="Print metrics for Prometheus. Needs '.[metrics]'."
)
@calib_dir_option
@store_option
@redis_url_option
@explain_errors
def status(
    calib_dir: Path, store: str | None, redis_url: str, watch: bool, interval: float, form: str | None
) -> None:
    """Show how far the run is, how fast, and who works on what. Changes nothing.

    The store is the one that run.json names. Without a Redis it says what the folder knows; while
    `producer run` works in the folder, its Redis is asked.
    """
    from producer.progress import command
    from shared.cli import is_named

    if watch and form:
        raise click.UsageError("--watch is for people: leave out --json and --prometheus")
    try:
        command.status(
            calib_dir,
            redis_url,
            store,
            named=is_named(click.get_current_context()),
            watch=interval if watch else None,
            form=form or "people",
        )
    except KeyboardInterrupt:
        click.echo(err=True)


@main.command()
@click.option(
    "--wait", is_flag=True, help="Keep collecting until everything is there or the rest has failed."
)
@calib_dir_option
@store_option
@redis_url_option
@explain_errors
def collect(calib_dir: Path, store: str | None, redis_url: str, wait: bool) -> None:
    """Fetch finished work: write samples and manifest, results and report.

    Lost tasks are enqueued again, and so are tasks whose shard is damaged or belongs to another run.
    The exit code is 3 while something is still missing.
    """
    import sys

    from producer import commands
    from producer.fleet import open_fleet_of
    from producer.interrupts import Interrupts

    try:
        with Interrupts() as interrupts:
            fleet = open_fleet_of(calib_dir, redis_url, store)
            complete = commands.collect(calib_dir, fleet, wait=wait, interrupts=interrupts)
    except KeyboardInterrupt:
        click.echo(
            "interrupted; what was collected is safe, give the same command again to continue", err=True
        )
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0 if complete else EXIT_INCOMPLETE)


@main.command()
@click.option(
    "--model",
    "-m",
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="ID",
    help="Used without a run.",
)
@click.option(
    "--prompt-csv",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The prompt file. [default: all_prompts.csv; the demo model brings its own]",
)
@click.option("--prompt-column", default="prompt", show_default=True, metavar="NAME", help="Its column.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON with every figure.")
@calib_dir_option
@store_option
@redis_url_option
@explain_errors
def doctor(
    model: str,
    prompt_csv: Path | None,
    prompt_column: str,
    as_json: bool,
    calib_dir: Path,
    store: str | None,
    redis_url: str,
) -> None:
    """Check Redis, the store, the disk, model, prompts, and whether the folder is as it was collected.

    Prints a line per check, with its cure; the exit code is 2 if one fails.
    """
    import sys

    from producer.doctor import examine
    from producer.folder.calib_folder import CalibFolder
    from shared.doctor.show import show

    found = examine(
        CalibFolder(calib_dir),
        redis_url=redis_url,
        store=store,
        model=model,
        prompt_csv=prompt_csv,
        column=prompt_column,
    )
    sys.exit(show(found, as_json=as_json))


@main.command("serve-redis")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where it keeps its data and its log. [default: a folder for this user's programs' data]",
)
@click.option(
    "--bind",
    default="* -::*",
    show_default=True,
    metavar="ADDRESSES",
    help="The addresses at which it listens; the default are all of this machine's.",
)
@click.option("--port", default=6379, show_default=True, type=click.IntRange(1, 65535), help="Its port.")
@click.option(
    "--max-memory", default="4GB", show_default=True, metavar="SIZE", help="How much memory it may take."
)
@explain_errors
def serve_redis(folder: Path | None, bind: str, port: int, max_memory: str) -> None:
    """Start a Redis for the fleet on this machine, and keep it until Ctrl-C.

    It listens on the network, asks for the password in REDIS_PASSWORD (without one it does not start), keeps
    what it was told across crashes, and never throws a key away. A Mac is kept awake meanwhile.
    """
    from producer import commands

    commands.serve_redis(folder, bind, port, max_memory)


@main.command()
@calib_dir_option
@explain_errors
def report(calib_dir: Path) -> None:
    """Write results and reports again from the calibration folder.

    This needs no Redis and no worker. `producer collect` and `producer run` also do it when they end.
    """
    from producer import commands

    commands.report(calib_dir)


@main.command()
@click.option(
    "--max-images", type=click.IntRange(1), help="Only of so many images, from the first. [default: all]"
)
@click.option(
    "--step-stride",
    type=click.IntRange(1),
    help="Only every N-th step of an image. [default: 1, every step]",
)
@click.option(
    "--remove",
    is_flag=True,
    help="Remove all sample files of images whose shard is there and intact; no other file is touched.",
)
@calib_dir_option
@explain_errors
def samples(calib_dir: Path, max_images: int | None, step_stride: int | None, remove: bool) -> None:
    """Write the sample files that are missing, out of the shards that `--samples needed` or `none` keeps.

    This needs no Redis and no worker, and can be repeated at any time. The exit code is 3 if an image is
    damaged.
    """
    import sys

    from producer import commands

    if remove and (max_images or step_stride):
        raise click.UsageError("--remove takes all samples away: leave out --max-images and --step-stride")
    whole = commands.samples(calib_dir, max_images=max_images, step_stride=step_stride or 1, remove=remove)
    sys.exit(0 if whole else EXIT_INCOMPLETE)


@main.command()
@calibration_options
@drop_finished_option
@samples_option
@sensitivity_options
@calib_dir_option
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Number of worker processes."
)
@click.option(
    "--redis-url",
    envvar="REDIS_URL",
    show_envvar=True,
    help=f"{REDIS_URL_HELP} [default: start one for this run]",
)
@click.option(
    "--target-bpw",
    type=click.FloatRange(0, 32, min_open=True),
    metavar="BITS",
    help="Size of the planned model in bits for each parameter, all things counted. [default: that of "
    "uniform 4 bits in groups of 64, 4.5 and a little]",
)
@click.option(
    "--level-images",
    default=plan_cli.DEFAULT_LEVEL_IMAGES,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="How many of the images to take levels of, which the plan is made from.",
)
@click.option(
    "--max-prompts",
    default=96,
    show_default=True,
    type=click.IntRange(1, 96),
    help="Draw at most this many further prompts for the proof. Nothing is claimed of fewer than 8.",
)
@click.option(
    "--rivals",
    default="uniform",
    show_default=True,
    type=click.Choice(["all", "uniform"]),
    help="What to compare the plan with: the uniform models of its size, which decide, or more besides; see "
    "`producer enqueue-verification`.",
)
@click.option(
    "--export",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder for the quantized model. [default: export, in the calibration folder]",
)
@click.option("--dry-run", is_flag=True, help="Print what all of it would cost, and start nothing.")
@click.option("--yes", is_flag=True, help="Ask for more than 50,000 forward passes.")
@click.option("--no-plan", is_flag=True, help="End with the report: no plan, no proof, no model.")
@explain_errors
def run(
    calib_dir: Path,
    workers: int,
    redis_url: str | None,
    target_bpw: float | None,
    level_images: int,
    max_prompts: int,
    rivals: str,
    export: Path | None,
    no_plan: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Do everything on this machine: draw images, measure, plan, prove, and write the quantized model.

    The model is the plan if it is shown to be better than the best uniform model of its size, else that one.
    Starts its own Redis unless you name one. You can press Ctrl-C at any time; the same command
    continues where it stopped.
    """
    import sys

    from producer import whole_run
    from producer.interrupts import Interrupts

    sensitivity = {name: options.pop(name) for name in SENSITIVITY_NAMES}
    wishes = whole_run.PlanWishes(
        bpw=target_bpw, level_images=level_images, max_prompts=max_prompts, rivals=rivals, export=export
    )
    try:
        with Interrupts() as interrupts:
            complete = whole_run.run(
                calib_dir,
                redis_url,
                workers,
                options,
                sensitivity,
                None if no_plan else wishes,
                interrupts,
                dry_run=dry_run,
            )
    except KeyboardInterrupt:
        click.echo("interrupted; give the same command again to continue", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0 if complete else EXIT_INCOMPLETE)


main.add_command(plan_cli.enqueue_levels)
main.add_command(plan_cli.plan)
main.add_command(plan_cli.enqueue_confirm)
main.add_command(proof_cli.enqueue_verification)
for command in (
    steering_cli.cancel,
    steering_cli.retry,
    steering_cli.failures,
    steering_cli.pause,
    steering_cli.resume,
    steering_cli.drain,
    steering_cli.runs,
    steering_cli.forget,
):
    main.add_command(command)
main.add_command(models_cli.export)
main.add_command(models_cli.inspect)


if __name__ == "__main__":
    main()
