"""The command that asks for a verification: it calls the library and prints the outcome."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from producer.commands import say_enqueued
from producer.cost import Gate
from producer.fleet import Fleet, check_store
from producer.folder.calib_folder import CalibFolder
from producer.kinds.weights import read_weights
from producer.lines import out
from producer.proof.enqueue import VerificationOptions
from producer.proof.enqueue import enqueue_verification as ask_for_verification
from shared.plan_file import read_plan


def enqueue_verification(
    calib_dir: Path, fleet: Fleet | None, plans: Sequence[Path], *, gate: Gate | None = None, **options: Any
) -> str:
    """Enqueue the verification of some plans, print the outcome, and return its id."""
    folder = CalibFolder(calib_dir)
    run = folder.require_run()
    check_store(run.store_id, run.store, fleet)
    read = [read_plan(path) for path in plans]
    weights = {plan.weights_id: read_weights(folder, plan.weights_id) for plan in read}
    asked = VerificationOptions(**options)
    request, reconciled = ask_for_verification(folder, read, weights, asked, fleet, gate)
    settings = request.settings
    what = "verification" if request.purpose == "proof" else "choice of a plan"
    out.print(
        f"{what} {settings.id}: {', '.join(request.names)} on {request.wanted} prompts, at most "
        f"{len(request.prompts)}; {settings.num_steps} steps, cfg {settings.cfg_weight:g}, "
        f"{settings.image_size} px",
    )
    say_enqueued(reconciled, "prompt")
    return settings.id
