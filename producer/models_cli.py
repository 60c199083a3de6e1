"""The commands about quantized models: `producer export` and `producer inspect`."""

from pathlib import Path

import click

from shared.cli import explain_errors


@click.command()
@click.option(
    "--plan",
    "plan_path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The plan.json of `producer plan`, or the winner.json of a proof.",
)
@click.option(
    "--out",
    "target",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder to write. It must not exist yet, or be empty.",
)
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The transformer weights that the run was enqueued with, if it was enqueued with --checkpoint.",
)
@click.option(
    "--proof",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The verification.json to tell of in the README. [default: the one beside the plan, if any]",
)
@click.option("--force", is_flag=True, help="Replace an earlier export of another plan in --out.")
@explain_errors
def export(plan_path: Path, target: Path, checkpoint: Path | None, proof: Path | None, force: bool) -> None:
    """Write the quantized model of a plan: its files, config and a README.

    Needs the original model on this machine, and the worker's libraries (pip install '.[worker]'). The folder
    appears only when it is whole. docs/export.md says how to load it.
    """
    import sys

    from producer import export_commands
    from producer.interrupts import Interrupts

    try:
        with Interrupts():
            export_commands.export(plan_path, target, checkpoint=checkpoint, proof=proof, force=force)
    except KeyboardInterrupt:
        click.echo(f"interrupted; {target} is as it was", err=True)
        sys.exit(130)


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@explain_errors
def inspect(path: Path, as_json: bool) -> None:
    """Show what a quantized MLX checkpoint holds: a .safetensors file, or a folder with some.

    Bits and group sizes are read off the stored shapes, layer by layer, and compared with what the files say
    of themselves. Reads no weights, and needs no MLX. The exit code is 1 if something is wrong.
    """
    import sys

    from producer import export_commands

    sys.exit(0 if export_commands.inspect(path, as_json=as_json) else 1)
