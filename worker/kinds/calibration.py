"""Calibration: draws one image and keeps what entered each of its steps."""

from shared.kinds.calibration import CalibrationTask
from worker.kinds.lent import Lent


def run(task: CalibrationTask, lent: Lent) -> bytes:
    """Draw the image."""
    from worker.engine.calibrate import calibrate

    return calibrate(task, lent.family, lent.check).to_bytes()
