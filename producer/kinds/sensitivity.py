"""Sensitivity: which (layer, bits) are measured exactly, and the results that are made of them."""

from collections.abc import Sequence
from pathlib import Path

from producer.folder.calib_folder import CalibFolder
from producer.folder.tasks import exact_tasks
from producer.kinds.part import Part
from producer.kinds.sampled import SampledPart
from producer.results.write import write_results


def find_parts(folder: CalibFolder) -> Sequence[Part]:
    """One a sensitivity run that asks for exact measurements."""
    if folder.read_model() is None:
        return []
    run = folder.require_run()
    requests = [(place, place.require_request()) for place in folder.sensitivities()]
    return [
        SensitivityPart(folder, place, request, tasks)
        for place, request in requests
        if (tasks := exact_tasks(request, run))
    ]


class SensitivityPart(SampledPart):
    """The exact measurements of one sensitivity run."""

    @property
    def title(self) -> str:
        return f"sensitivity {self.request.settings.id}"

    def write_results(self, reasons: dict[str, str]) -> Path | None:
        """Of the run's sketch, too, where there is one."""
        return write_results(self.folder, self.place, reasons)
