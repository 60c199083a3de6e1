"""Write what belongs to a plan into its folder: plan.json, predictions, and the page."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from producer.folder.calib_folder import CalibFolder
from producer.plan.prediction import Prediction, read_predictions
from producer.report.plan_page import render_plan
from shared.files import write_atomically
from shared.plan_file import Plan, encode_plan, read_plan

PREDICTION = "prediction.json"
PAGE = "report.html"


def write_plan(folder: CalibFolder, plan: Plan) -> Path:
    """Write a plan and its page; return the path of plan.json."""
    path = folder.plan_path(plan.id)
    write_atomically(path, encode_plan(plan))
    write_page(folder, plan)
    return path


def write_page(folder: CalibFolder, plan: Plan) -> Path:
    """Write the page of a plan, with its predictions if there are any; return the path."""
    root = folder.plan_path(plan.id).parent
    page = render_plan(plan, folder.require_model(), read_predictions(root / PREDICTION))
    write_atomically(root / PAGE, page.encode())
    return root / PAGE


def write_predictions(
    folder: CalibFolder, root: Path, plan_ids: Sequence[str], predictions: Sequence[Prediction]
) -> Path:
    """Write predictions into the request's folder, and beside each plan with its page; return a page's path.

    Without a plan, as when its folder was deleted, the path of the predictions themselves is returned.
    """
    data = msgspec.json.format(msgspec.json.encode(predictions), indent=1) + b"\n"
    written = root / PREDICTION
    write_atomically(written, data)
    for path in [folder.plan_path(plan_id) for plan_id in plan_ids]:
        if path.is_file():
            write_atomically(path.parent / PREDICTION, data)
            written = write_page(folder, read_plan(path))
    return written
