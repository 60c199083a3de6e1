"""Options that several commands share."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from shared.choices import DEFAULT_BITS, check_bits
from shared.errors import InputError

DEFAULT_BITS_TEXT = ",".join(map(str, DEFAULT_BITS))


class Bits(click.ParamType[list[int]]):
    """Bit widths, separated by commas."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            return check_bits([int(part) for part in str(value).split(",")])
        except ValueError:
            self.fail(f"{value!r} is no list of whole numbers; write it as {DEFAULT_BITS_TEXT}", param, ctx)
        except InputError as error:
            self.fail(str(error), param, ctx)


calib_dir_option = click.option(
    "--calib-dir",
    envvar="BITFLEET_CALIB_DIR",
    show_envvar=True,
    default="calibration_data",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder for samples, manifest, results and reports.",
)


def cost_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --dry-run and --yes; the command gets a `gate`, which all that is enqueued has to pass."""

    @functools.wraps(function)
    def wrapper(*args: Any, dry_run: bool, yes: bool, **kwargs: Any) -> Any:
        # Imported here, so that `--help` answers at once.
        from producer.cost import DryRun, Gate
        from producer.lines import out

        gate = Gate(out.show if dry_run else out.print, dry_run=dry_run, yes=yes)
        try:
            answer = function(*args, gate=gate, **kwargs)
        except DryRun:
            return None
        gate.tell()
        return answer

    for option in (
        click.option("--yes", is_flag=True, help="Ask for more than three days, or 50,000 forward passes."),
        click.option("--dry-run", is_flag=True, help="Print what it would cost, and enqueue nothing."),
    ):
        wrapper = option(wrapper)
    return wrapper


store_option = click.option(
    "--store",
    metavar="URL",
    envvar="BITFLEET_STORE",
    show_envvar=True,
    help="Where finished shards wait until they are collected: a folder that every machine can reach "
    "(/Volumes/share/…, s3://…, sftp://…). [default: that of the run in the folder, else Redis]",
)
relay_limit_option = click.option(
    "--relay-limit",
    metavar="SIZE",
    help="How many bytes of shards may wait in Redis, such as 4GB. Workers pause when the limit is reached. "
    "At least 1MB. [default: 1GB]",
)
