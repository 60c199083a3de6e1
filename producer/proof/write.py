"""Write what a verification says: verification.json and winner.json."""

from collections.abc import Sequence
from pathlib import Path

from humanfriendly import format_size
from msgspec.structs import replace

from producer.folder.calib_folder import CalibFolder
from producer.folder.kept_folder import KeptFolder
from producer.folder.verification_request import PLAN, VARIANTS, VERDICT, WINNER, VerificationRequest
from producer.plan.prediction import Prediction, read_predictions
from producer.proof.measured import measured
from producer.proof.verdict import (
    Verdict,
    compare,
    decode_verdict,
    encode_verdict,
    is_decided,
    judge,
)
from shared.files import write_atomically
from shared.kinds.verification import VerificationShard
from shared.plan import decode_variants
from shared.plan_file import PLAN as PLAN_NAME
from shared.plan_file import Plan, PlanPrompt, encode_plan, read_plan


def write_verdict(
    folder: CalibFolder,
    subfolder: KeptFolder[VerificationRequest],
    shards: Sequence[VerificationShard],
    *,
    missing: int,
) -> Path:
    """Write verdict and winner; return the verdict's path.

    Args:
        folder: the calibration folder.
        subfolder: the verification.
        shards: of the collected prompts, in the order of the request; one at least.
        missing: how many prompts are wanted and not collected.
    """
    request = subfolder.require_request()
    found = measured(shards)
    comparisons = compare(found, request.names, len(request.prompts)) if request.purpose == "proof" else []
    at_the_end = request.wanted == len(request.prompts) or is_decided(comparisons)
    verdict = judge(
        found,
        request,
        complete=not missing and at_the_end,
        predictions=_predictions(folder, request),
        images=_images(request, shards),
    )
    write_atomically(subfolder.root / VERDICT, encode_verdict(verdict))
    if request.purpose == "proof":
        winner = winning_plan(subfolder, verdict)
        write_atomically(subfolder.root / WINNER, encode_plan(winner))
    return subfolder.root / VERDICT


def winning_plan(subfolder: KeptFolder[VerificationRequest], verdict: Verdict) -> Plan:
    """Return the plan of what is to be shipped, for the export. A rival has no score of its own: 0."""
    plan = read_plan(subfolder.root / PLAN)
    variants = {one.name: one for one in decode_variants((subfolder.root / VARIANTS).read_bytes())}
    if verdict.winner == plan.variant.name:
        return plan
    layers = variants[verdict.winner].layers
    sizes = {one.name: one.stored_bytes for one in verdict.variants}
    known = [*plan.layers, *plan.kept]
    return replace(
        plan,
        layers=layers,
        kept=tuple(path for path in known if path not in layers),
        stored_bytes=sizes[verdict.winner],
        target=f"{verdict.winner}, the winner of verification {verdict.verification_id}",
        score=0.0,
        gap=0.0,
    )


def conclusion(subfolder: KeptFolder[VerificationRequest]) -> str | None:
    """Return the written verdict in one line; None if there is none."""
    path = subfolder.root / VERDICT
    if not path.is_file():
        return None
    verdict = decode_verdict(path.read_bytes())
    winner = next(one for one in verdict.variants if one.name == verdict.winner)
    state = "" if verdict.complete else ", so far"
    return (
        f"{verdict.winner} wins on {verdict.prompts} prompts{state}: {verdict.reason}. PSNR "
        f"{winner.psnr_db.mean:.1f} dB (worst {winner.psnr_db.worst:.1f}, noise floor {verdict.floor_text}), "
        f"{format_size(winner.stored_bytes)}"
    )


def _images(request: VerificationRequest, shards: Sequence[VerificationShard]) -> list[PlanPrompt]:
    by_index = {image.image_index: image for image in request.prompts}
    return [by_index[int(shard.image_index)] for shard in shards]


def _predictions(folder: CalibFolder, request: VerificationRequest) -> dict[str, Prediction]:
    """Return the predictions beside the plan, by name of the variant here."""
    found = read_predictions(folder.plan_path(request.plan_id).parent / "prediction.json")
    by_name = {one.name: one for one in found}
    own = by_name.get(f"plan {request.plan_id}")
    return by_name | ({PLAN_NAME: own} if own and request.purpose == "proof" else {})
