"""From plan.json to a folder that holds the model."""

from collections.abc import Callable
from pathlib import Path

from producer.export.exporter import write_model
from producer.export.readme import export_readme
from producer.export.target_folder import check_target, whole_folder
from producer.inspection.inspect_checkpoint import Inspection, inspect_checkpoint
from shared.errors import InputError
from shared.exported import PLAN_COPY, README, ExportRequest, Origin
from shared.files import write_atomically
from shared.plan_file import Plan, encode_plan, read_plan


def export_plan(
    plan_path: Path,
    target: Path,
    *,
    checkpoint: Path | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Plan, Inspection]:
    """Quantize a model as planned, and write it into a folder.

    Args:
        plan_path: plan.json.
        target: a folder that does not exist, is empty, or holds an earlier export.
        checkpoint: the transformer's weights, if the run was enqueued with a file of its own.
        force: replace an earlier export.
        progress: told how many tensors of how many are written.

    Returns:
        The plan, and what the folder holds.

    Raises:
        InputError: there is no such plan, the target may not be written to, or the checkpoint is missing.
        ExportFailedError: the worker's libraries are missing, the model is, or the disk is full.
    """
    plan = read_plan(plan_path)
    check_target(target, force=force)
    if plan.run.checkpoint_sha256 and checkpoint is None:
        raise InputError(
            f"this plan is for a checkpoint of your own (sha256 {plan.run.checkpoint_sha256[:12]}); give "
            "that file with --checkpoint"
        )
    request = ExportRequest(
        origin=Origin(run=plan.run, fingerprint=plan.fingerprint, plan_id=plan.id),
        layers=plan.layers,
        checkpoint=str(checkpoint.resolve()) if checkpoint else None,
    )
    with whole_folder(target) as folder:
        write_model(request, folder, progress)
        write_atomically(folder / PLAN_COPY, encode_plan(plan))
        inspection = inspect_checkpoint(folder)
        write_atomically(folder / README, export_readme(plan, inspection).encode())
    return plan, inspection
