"""The tasks that follow from a run file and a request file."""

from producer.folder.request_file import RequestFile
from producer.folder.run_file import RunFile
from shared.kinds.calibration import CalibrationTask
from shared.kinds.sensitivity import SensitivityTask
from shared.kinds.sketch import SketchTask


def calibration_tasks(run: RunFile) -> list[CalibrationTask]:
    """Return one task per image, in order."""
    return [
        CalibrationTask(
            run=run.settings,
            store_id=run.store_id,
            image_index=index,
            prompt=prompt,
            # numpy's seeds end at 2**32.
            seed=(run.settings.seed + index) % 2**32,
        )
        for index, prompt in enumerate(run.prompts)
    ]


def exact_tasks(request: RequestFile, run: RunFile) -> list[SensitivityTask]:
    """Return one task per (layer, bits) that is to be measured exactly."""
    return [
        SensitivityTask(
            run=run.settings, sensitivity=request.settings, store_id=run.store_id, layer=layer, bits=bits
        )
        for layer, bits in request.pairs()
    ]


def sketch_tasks(request: RequestFile, run: RunFile) -> list[SketchTask]:
    """Return one task per sample; none if no sketch is wanted."""
    if request.sketch is None:
        return []
    return [
        SketchTask(
            run=run.settings,
            sensitivity=request.settings,
            store_id=run.store_id,
            bits=request.sketch.bits,
            sample=sample,
            probe_batch=0,
            probes=request.sketch.probes,
        )
        for sample in range(request.samples)
    ]
