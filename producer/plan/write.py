"""Write what belongs to a plan into its folder: plan.json and predictions."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from producer.folder.calib_folder import CalibFolder
from producer.plan.prediction import Prediction
from shared.files import write_atomically
from shared.plan_file import Plan, encode_plan

PREDICTION = "prediction.json"


def write_plan(folder: CalibFolder, plan: Plan) -> Path:
    """Write a plan; return the path of plan.json."""
    path = folder.plan_path(plan.id)
    write_atomically(path, encode_plan(plan))
    return path


def write_predictions(
    folder: CalibFolder, root: Path, plan_ids: Sequence[str], predictions: Sequence[Prediction]
) -> Path:
    """Write predictions into the request's folder, and beside each plan; return the path of the former."""
    data = msgspec.json.format(msgspec.json.encode(predictions), indent=1) + b"\n"
    write_atomically(root / PREDICTION, data)
    for path in [folder.plan_path(plan_id) for plan_id in plan_ids]:
        # Its folder may have been deleted.
        if path.is_file():
            write_atomically(path.parent / PREDICTION, data)
    return root / PREDICTION
