"""From plan.json to a folder that holds the model."""

from collections.abc import Callable
from pathlib import Path

from producer.export.exporter import write_model
from producer.export.readme import export_readme
from producer.export.target_folder import check_target, is_whole_export_of, whole_folder
from producer.folder.verification_request import VERDICT
from producer.inspection.inspect_checkpoint import Inspection, inspect_checkpoint
from producer.proof.verdict import Verdict, decode_verdict, encode_verdict
from shared.errors import InputError
from shared.exported import PLAN_COPY, PROOF_COPY, README, ExportRequest, Origin
from shared.files import write_atomically
from shared.plan_file import Plan, encode_plan, read_plan


def export_plan(
    plan_path: Path,
    target: Path,
    *,
    checkpoint: Path | None = None,
    proof_path: Path | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Plan, Inspection]:
    """Quantize a model as planned, and write it into a folder.

    Args:
        plan_path: plan.json.
        target: a folder that does not exist, is empty, or holds an earlier export.
        checkpoint: the transformer's weights, if the run was enqueued with a file of its own.
        proof_path: verification.json; the one beside the plan if None, and if there is one.
        force: replace an earlier export of another plan. Of the same plan only the README is written again.
        progress: told how many tensors of how many are written.

    Returns:
        The plan, and what the folder holds.

    Raises:
        InputError: there is no such plan, the target may not be written to, or the checkpoint is missing.
        ExportFailedError: the worker's libraries are missing, the model is, or the disk is full.
    """
    plan, proof = read_plan(plan_path), read_proof(plan_path, proof_path)
    again = is_whole_export_of(target, plan.id)
    if not again:
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
    if again:
        return plan, _describe(target, plan, proof)
    with whole_folder(target) as folder:
        write_model(request, folder, progress)
        inspection = _describe(folder, plan, proof)
    return plan, inspection


def read_proof(plan_path: Path, proof_path: Path | None) -> Verdict | None:
    """Return the verdict that was named, or the one beside a plan; None if there is none there.

    Raises:
        InputError: it can't be read, or is none.
    """
    path = proof_path or plan_path.with_name(VERDICT)
    try:
        return decode_verdict(path.read_bytes())
    except FileNotFoundError:
        if proof_path is None:
            return None
        raise InputError(f"no proof at {path}; `producer collect` writes verification.json") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _describe(folder: Path, plan: Plan, proof: Verdict | None) -> Inspection:
    """Write plan, proof and README; return what the folder holds."""
    write_atomically(folder / PLAN_COPY, encode_plan(plan))
    if proof is not None:
        write_atomically(folder / PROOF_COPY, encode_verdict(proof))
    inspection = inspect_checkpoint(folder)
    write_atomically(folder / README, export_readme(plan, inspection, proof).encode())
    return inspection
