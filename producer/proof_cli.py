"""The command that asks for a proof: it reads the options and makes one call."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from producer.cli_options import (
    calib_dir_option,
    cost_options,
    relay_limit_option,
    store_option,
)
from shared.cli import explain_errors, redis_url_option

if TYPE_CHECKING:
    from producer.cost import Gate


@click.command("enqueue-verification")
@click.option(
    "--plan",
    "plans",
    required=True,
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The plan.json to prove. Give two or three to have the best chosen first, on the prompts that the "
    "plans keep for choosing.",
)
@click.option(
    "--max-prompts",
    default=96,
    show_default=True,
    type=click.IntRange(1, 96),
    help="Draw at most this many prompts. Fewer are drawn if they show enough: it is looked at 8, 16, 32, 64 "
    "and 96. Nothing is claimed of fewer than 8.",
)
@click.option(
    "--rivals",
    default="all",
    show_default=True,
    type=click.Choice(["all", "uniform"]),
    help="What to compare the plan with, at no more bytes. all: uniform models, the rule of thumb, plans "
    "from weight errors alone, and random plans. uniform: only what decides, in a third of the time.",
)
@click.option(
    "--num-steps",
    "--steps",
    "num_steps",
    type=click.IntRange(1, 1000),
    help="Denoising steps per image. [default: those of the run]",
)
@click.option(
    "--cfg-weight",
    type=click.FloatRange(0, 100),
    help="Strength of classifier-free guidance. [default: that of the run]",
)
@click.option(
    "--image-size",
    type=click.IntRange(16, 4096),
    help="Width and height of the images in pixels, a multiple of 16. [default: that of the run]",
)
@calib_dir_option
@store_option
@relay_limit_option
@redis_url_option
@cost_options
@explain_errors
def enqueue_verification(
    calib_dir: Path, store: str | None, relay_limit: str | None, redis_url: str, gate: "Gate", **options: Any
) -> None:
    """Enqueue the proof of a plan: the original, the plan and its rivals draw prompts that no plan has seen.

    One prompt is one task. `producer collect --wait` asks for more prompts until it is shown whether the plan
    is better than the best that anybody could make without it, then writes verification.json, the winner's
    plan and a report. The winner is what to ship, even if it is a uniform model.
    """
    from producer.commands import say_if_nobody_works
    from producer.fleet import fleet_to_ask
    from producer.proof import commands

    fleet = fleet_to_ask(gate, calib_dir, redis_url, store, relay_limit)
    commands.enqueue_verification(calib_dir, fleet, gate=gate, **options)
    say_if_nobody_works(fleet)
