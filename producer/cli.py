"""The `producer` command. Thin: options in, one call, what came of it out. Heavy imports wait inside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from shared.cli import REDIS_URL_HELP, explain_errors, redis_url_option

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
DEFAULT_BITS = "2,3,4,5,6,8"


class _Bits(click.ParamType[list[int]]):
    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        from producer.enqueue import checked_bits
        from shared.errors import InputError

        try:
            return checked_bits([int(part) for part in str(value).split(",")])
        except ValueError:
            self.fail(f"{value!r} is no list of whole numbers; write it as {DEFAULT_BITS}", param, ctx)
        except InputError as error:
            self.fail(str(error), param, ctx)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


calib_dir_option = click.option(
    "--calib-dir",
    default="calibration_data",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where samples, manifest, results and reports are.",
)
store_option = click.option(
    "--store",
    metavar="URL",
    envvar="BITFLEET_STORE",
    show_envvar=True,
    help="Keep shards in a folder that every machine reaches (/Volumes/share/…, s3://…, sftp://…) "
    "until they are collected. [default: in Redis]",
)
relay_limit_option = click.option(
    "--relay-limit",
    metavar="SIZE",
    help="Of shards that wait in Redis, as 4GB; workers pause when it is full. At least 1MB. [default: 1GB]",
)
calibration_options = _options(
    click.option("--num-images", default=100, show_default=True, type=click.IntRange(1, 100_000)),
    click.option(
        "--num-steps",
        type=click.IntRange(1, 1000),
        help="Of an image. [default: the model's: 50 for SD3 medium, 28 for SD3.5-large, 4 for schnell]",
    ),
    click.option(
        "--cfg-weight",
        type=click.FloatRange(0, 100),
        help="Guidance. [default: the model's: 7.5 for SD3 medium, 3.5 for SD3.5-large; FLUX takes none]",
    ),
    click.option(
        "--prompt-csv",
        default="all_prompts.csv",
        show_default=True,
        type=click.Path(dir_okay=False, path_type=Path),
        help="CSV in UTF-8 with a column `prompt`; image i takes line i.",
    ),
    click.option(
        "--seed",
        default=0,
        show_default=True,
        type=click.IntRange(0, 2**32 - 1),
        help="Of image 0; image i adds i.",
    ),
    click.option(
        "--image-size", type=click.IntRange(16, 4096), help="Pixels, a multiple of 16. [default: the model's]"
    ),
    click.option(
        "--model", default="argmaxinc/mlx-stable-diffusion-3-medium", show_default=True, metavar="ID"
    ),
    click.option(
        "--checkpoint",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A transformer checkpoint of your own, in the model's layout.",
    ),
    click.option(
        "--guidance",
        type=click.FloatRange(0, 100),
        help="For the guidance embedding of FLUX.1-dev. [default: 3.5]",
    ),
    click.option(
        "--reference",
        type=click.Choice(["published", "diffusionkit"]),
        help="Whose forward pass: that of the model's publishers, or DiffusionKit's, which differs by some "
        "percent (docs/models.md). [default: published; the demo was made with DiffusionKit's]",
    ),
    click.option("--use-t5/--no-t5", default=None, help="The T5 text encoder. [default: none, but for FLUX]"),
)
sensitivity_options = _options(
    click.option("--bits", type=_Bits(), default=DEFAULT_BITS, show_default=True),
    click.option("--group-size", type=click.Choice(["32", "64", "128"]), default="64", show_default=True),
    click.option(
        "--max-images", type=click.IntRange(1), help="Measure on the first images only. [default: 8]"
    ),
    click.option(
        "--step-stride",
        type=click.IntRange(1),
        help="Measure on every so-many-th step. [default: about ten steps an image]",
    ),
    click.option(
        "--layers",
        default="*",
        show_default=True,
        metavar="GLOB",
        help="Dotted paths; more than one by comma. A sketch takes all.",
    ),
    click.option(
        "--method",
        type=click.Choice(["exact", "sketch"]),
        default="exact",
        show_default=True,
        help="exact: the model runs with each quantized weight. sketch: all pairs at once, to first order, "
        "from a few backward passes a sample.",
    ),
    click.option(
        "--probes", type=click.IntRange(1, 64), default=8, show_default=True, help="Of a sketch, a sample."
    ),
    click.option(
        "--verify",
        type=click.IntRange(0),
        default=0,
        help="After a sketch, measure so many pairs exactly: those whose uncertainty matters most.",
    ),
    click.option(
        "--until",
        type=click.FloatRange(0, 100, min_open=True),
        metavar="PERCENT",
        help="Stop an exact measurement once its relative error's 95% interval is that tight.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["float32", "model"]),
        default="float32",
        show_default=True,
        help="Run exact measurements in float32, weights as they are stored, or in the model's own: faster "
        "on some machines, but small errors drown in rounding.",
    ),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bitfleet")
def main() -> None:
    """Find out how many bits each layer of a diffusion transformer needs.

    \b
    producer enqueue-calibration --num-images 100    what to draw
    worker start                                     on every Mac
    producer collect --wait                          samples, manifest
    producer enqueue-sensitivity                     what to measure
    producer collect --wait                          results, report

    `producer run` does all of it on this machine. Every command can be given again: what is done stays
    done, what got lost is enqueued again. Exit codes: 0 all is there, 2 an error, 3 not complete yet.
    """


@main.command("enqueue-calibration")
@calibration_options
@calib_dir_option
@store_option
@relay_limit_option
@redis_url_option
@explain_errors
def enqueue_calibration(
    calib_dir: Path, store: str | None, relay_limit: str | None, redis_url: str, **options: Any
) -> None:
    """Ask for images: one task an image, its whole denoising trajectory."""
    from producer import commands

    settings, prompts = commands.read_settings(**options)
    fleet = commands.open_fleet_for_run(calib_dir, redis_url, store, relay_limit)
    commands.enqueue_calibration(calib_dir, settings, prompts, options["num_images"], fleet)
    commands.say_if_nobody_works(fleet)


@main.command("enqueue-sensitivity")
@sensitivity_options
@calib_dir_option
@store_option
@relay_limit_option
@redis_url_option
@explain_errors
def enqueue_sensitivity(
    calib_dir: Path, store: str | None, relay_limit: str | None, redis_url: str, **options: Any
) -> None:
    """Ask what each layer suffers at each bit width: one task a (layer, bits)."""
    from producer import commands

    fleet = commands.open_fleet(redis_url, store, relay_limit)
    commands.enqueue_sensitivity(calib_dir, fleet, **options)
    commands.say_if_nobody_works(fleet)


@main.command()
@calib_dir_option
@store_option
@redis_url_option
@explain_errors
def status(calib_dir: Path, store: str | None, redis_url: str) -> None:
    """Say how far everything is, and who works; changes nothing."""
    from producer import commands

    commands.status(calib_dir, commands.open_fleet(redis_url, store))


@main.command()
@click.option("--wait", is_flag=True, help="Go on until everything is there, or nothing more will come.")
@calib_dir_option
@store_option
@redis_url_option
@explain_errors
def collect(calib_dir: Path, store: str | None, redis_url: str, wait: bool) -> None:
    """Merge finished shards into samples and manifest, results and report.

    Tasks that got lost, and shards that turn out truncated, altered or foreign, are enqueued again.
    Exit code 3 says that something is still missing.
    """
    import sys

    from producer import commands
    from producer.interrupts import Interrupts

    try:
        with Interrupts() as interrupts:
            fleet = commands.open_fleet(redis_url, store)
            complete = commands.collect(calib_dir, fleet, wait=wait, interrupts=interrupts)
    except KeyboardInterrupt:
        click.echo("interrupted; what was collected is safe, the same command goes on from here", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0 if complete else EXIT_INCOMPLETE)


@main.command()
@calib_dir_option
@explain_errors
def report(calib_dir: Path) -> None:
    """Write results and reports again, from the folder alone.

    No Redis and no worker is needed. `producer collect` and `producer run` do the same at their end.
    """
    from producer import commands

    commands.report(calib_dir)


@main.command()
@calibration_options
@sensitivity_options
@calib_dir_option
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes here.")
@click.option(
    "--redis-url", envvar="REDIS_URL", show_envvar=True, help=f"{REDIS_URL_HELP} [default: our own]"
)
@explain_errors
def run(calib_dir: Path, workers: int, redis_url: str | None, **options: Any) -> None:
    """Do all of it on this machine: calibrate, measure, collect, report.

    Starts a Redis of its own unless one is named. Ctrl-C is safe at any point: the same command goes on
    where it stopped.
    """
    import sys

    from producer import commands
    from producer.interrupts import Interrupts

    sensitivity = {name: options.pop(name) for name in SENSITIVITY_NAMES}
    try:
        with Interrupts() as interrupts:
            complete = commands.run(calib_dir, redis_url, workers, options, sensitivity, interrupts)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on where this one stopped", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0 if complete else EXIT_INCOMPLETE)


if __name__ == "__main__":
    main()
