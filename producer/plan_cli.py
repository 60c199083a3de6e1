"""The commands about plans: they read the options and make one call."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from producer.cli_options import (
    DEFAULT_BITS_TEXT,
    Bits,
    calib_dir_option,
    cost_options,
    relay_limit_option,
    store_option,
)
from shared.choices import GROUP_SIZES
from shared.cli import explain_errors, redis_url_option

if TYPE_CHECKING:
    from producer.cost import Gate

DEFAULT_GROUPS_TEXT = ",".join(map(str, GROUP_SIZES))
DEFAULT_LEVEL_IMAGES = 16


class _Groups(click.ParamType[list[int]]):
    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) in GROUP_SIZES for part in parts):
            self.fail(f"{value!r}: MLX offers groups of {DEFAULT_GROUPS_TEXT}", param, ctx)
        return sorted({int(part) for part in parts})


def _prompt_options(command: Callable[..., Any]) -> Callable[..., Any]:
    named = click.option(
        "--prompt-csv",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The prompt file of the run, for prompts beyond the run's own. [default: all_prompts.csv; the "
        "demo model brings its own]",
    )
    column = click.option(
        "--prompt-column",
        default="prompt",
        show_default=True,
        metavar="NAME",
        help="Which column of a .csv or .tsv holds the prompts.",
    )
    return named(column(command))


@click.command("enqueue-levels")
@click.option(
    "--images",
    default=DEFAULT_LEVEL_IMAGES,
    show_default=True,
    type=click.IntRange(0, 10_000),
    help="How many images to measure on, from the run's first. 0 asks for the weight errors alone.",
)
@click.option(
    "--bits",
    type=Bits(),
    default=DEFAULT_BITS_TEXT,
    show_default=True,
    help="Bit widths that a plan can choose from. Add 1 if every worker has MLX 0.32.4 or newer.",
)
@click.option(
    "--group-sizes",
    type=_Groups(),
    default=DEFAULT_GROUPS_TEXT,
    show_default=True,
    help="Group sizes that a plan can choose from.",
)
@_prompt_options
@calib_dir_option
@store_option
@relay_limit_option
@redis_url_option
@cost_options
@explain_errors
def enqueue_levels(
    calib_dir: Path, store: str | None, relay_limit: str | None, redis_url: str, gate: "Gate", **options: Any
) -> None:
    """Enqueue what plans are made of: weight errors and levels.

    One task says how far each candidate is from each layer's weight. One task an image follows a random probe
    of the final latent back through all steps; that tells how much a change of each layer moves the image.
    """
    from producer import commands
    from producer.fleet import fleet_to_ask
    from producer.plan import commands as plan_commands

    fleet = fleet_to_ask(gate, calib_dir, redis_url, store, relay_limit)
    plan_commands.enqueue_levels(calib_dir, fleet, gate=gate, **options)
    commands.say_if_nobody_works(fleet)


@click.command()
@click.option(
    "--target-bpw",
    "bpw",
    multiple=True,
    type=click.FloatRange(0, 32, min_open=True),
    metavar="BITS",
    help="So many bits for each parameter of the transformer. Everything counts: scales and biases, and in "
    "16 bits all that is not quantized. Uniform 4 bits in groups of 64 are 4.5 and a little.",
)
@click.option(
    "--target-mb",
    "megabytes",
    multiple=True,
    type=click.FloatRange(0, min_open=True),
    metavar="MB",
    help="So many millions of bytes.",
)
@click.option(
    "--like",
    "models",
    multiple=True,
    metavar="uniform:BITS[/GROUP]",
    help="As large as a uniform model: uniform:4 (groups of 64), uniform:3/32.",
)
@click.option(
    "--max-error",
    "errors",
    multiple=True,
    type=click.FloatRange(0, min_open=True),
    metavar="ERROR",
    help="As small as it can be with a predicted relative error of the output of at most this: 0.1 is a "
    "tenth of the final latent. The prediction is by the scores, and so rather too good.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="GLOB=WHAT",
    help="What some layers must be, such as '*adaLN*=8': at least 8 bits. '=4/64': exactly 4 bits in groups "
    "of 64. '=keep' or '=16': as it is. GLOB is a pattern of dotted MLX paths. Can be given several times; "
    "all that match a layer hold.",
)
@click.option(
    "--target",
    "scores",
    type=click.Choice(["image", "velocity"]),
    default="image",
    show_default=True,
    help="What is to change little. image: the final latent, by levels. velocity: the output of single "
    "steps, by exact or sketched results of the same folder; bits are then chosen at their group size only.",
)
@click.option(
    "--scores",
    "source",
    metavar="ID",
    help="Which levels, or which sensitivity run, where the folder holds several.",
)
@click.option(
    "--levels-by",
    type=click.Choice(["products", "sketch"]),
    help="How a layer's level is taken: from products of its gradient with real rounding errors, or from the "
    "gradient's size. Plans by both are worth comparing. [default: products from 8 images on]",
)
@click.option(
    "--buckets",
    metavar="early=1,mid=1,late=1",
    help="Weights of errors made early, in the middle and late in the steps. [default: errors add up over "
    "all steps]",
)
@click.option(
    "--max-step-time",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="The quantized layers may take no longer than this in one step, by --step-times.",
)
@click.option(
    "--step-times",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A CSV with columns bits, group_size and seconds: what a step takes with all layers at this choice; "
    "bits 16 with no group size for the weights as they are.",
)
@click.option(
    "--choosing",
    default=8,
    show_default=True,
    type=click.IntRange(0),
    help="How many prompts to set aside for the choice among plans.",
)
@click.option(
    "--prediction",
    default=32,
    show_default=True,
    type=click.IntRange(0),
    help="How many for the prediction.",
)
@click.option(
    "--proof",
    default=96,
    show_default=True,
    type=click.IntRange(0),
    help="How many for the proof, at most: it takes what the prompt file has left.",
)
@_prompt_options
@click.option(
    "--out", "out_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the plan here, too."
)
@calib_dir_option
@explain_errors
def plan(
    calib_dir: Path,
    bpw: tuple[float, ...],
    megabytes: tuple[float, ...],
    models: tuple[str, ...],
    errors: tuple[float, ...],
    **options: Any,
) -> None:
    """Choose bits and group size of each layer, for a size or an error.

    \b
    producer plan --target-bpw 4.5
    producer plan --like uniform:4 --keep '*adaLN*=8'
    producer plan --target-bpw 3 --target-bpw 4 --target-bpw 5

    Several targets give a frontier. Layers that are one matrix in the export format get the same choice.
    Needs `producer enqueue-levels`, collected; no Redis and no worker. Plans lie in plans/<id>/plan.json.
    """
    from producer.plan import commands as plan_commands

    targets = plan_commands.targets_of(bpw, megabytes, errors, models)
    plan_commands.plan(calib_dir, targets=targets, **options)


@click.command("enqueue-confirm")
@click.option(
    "--plan",
    "plans",
    multiple=True,
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="A plan.json; up to four.",
)
@calib_dir_option
@store_option
@relay_limit_option
@redis_url_option
@cost_options
@explain_errors
def enqueue_confirm(
    plans: tuple[Path, ...],
    calib_dir: Path,
    store: str | None,
    relay_limit: str | None,
    redis_url: str,
    gate: "Gate",
) -> None:
    """Enqueue the predicted errors of finished plans, on prompts that had no part in making them.

    The uniform models of the same size are predicted, too. `producer collect` writes prediction.json beside
    each plan.
    """
    from producer import commands
    from producer.fleet import fleet_to_ask
    from producer.plan import commands as plan_commands

    fleet = fleet_to_ask(gate, calib_dir, redis_url, store, relay_limit)
    plan_commands.enqueue_confirm(calib_dir, fleet, plans, gate)
    commands.say_if_nobody_works(fleet)
