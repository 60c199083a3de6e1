"""The commands about quantized models, one function each: they call the library and print the outcome."""

from pathlib import Path

from humanfriendly import format_size

from producer.console import CountBar
from producer.export.export_plan import export_plan
from producer.inspection.inspect_checkpoint import inspect_checkpoint
from producer.inspection.table import inspection_json, print_inspection
from producer.lines import out


def export(
    plan_path: Path,
    target: Path,
    *,
    checkpoint: Path | None = None,
    proof: Path | None = None,
    force: bool = False,
) -> None:
    """Write the quantized model of a plan, and print where it is."""
    with CountBar("export") as bar:
        plan, inspection = export_plan(
            plan_path, target, checkpoint=checkpoint, proof_path=proof, force=force, progress=bar.show
        )
    bits = 8 * inspection.nbytes / plan.parameters
    out.print(
        f"export: {target}: {format_size(inspection.nbytes)}, {bits:.2f} bits a parameter, "
        f"{len(inspection.quantized)} quantized layers"
    )


def inspect(path: Path, *, as_json: bool) -> bool:
    """Print what a checkpoint holds; return whether all is as it should be."""
    inspection = inspect_checkpoint(path)
    if as_json:
        out.show(inspection_json(inspection))
    else:
        print_inspection(inspection)
    return not inspection.all_problems
