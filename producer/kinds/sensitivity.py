"""Sensitivity: the (layer, bits) to measure exactly, and their results."""

from collections.abc import Sequence
from pathlib import Path

from producer.folder.calib_folder import CalibFolder
from producer.folder.tasks import exact_tasks
from producer.kinds.part import Part
from producer.kinds.sampled import SampledPart
from producer.results.write import write_results


def find_parts(folder: CalibFolder) -> Sequence[Part]:
    """Return one part per sensitivity run with exact measurements."""
    if folder.read_model() is None:
        return []
    run = folder.require_run()
    requests = [(subfolder, subfolder.require_request()) for subfolder in folder.sensitivities()]
    return [
        SensitivityPart(folder, subfolder, request, tasks)
        for subfolder, request in requests
        if (tasks := exact_tasks(request, run))
    ]


class SensitivityPart(SampledPart):
    """The exact measurements of one sensitivity run."""

    @property
    def title(self) -> str:
        return f"sensitivity {self.request.settings.id}"

    def write_results(self, reasons: dict[str, str]) -> Path | None:
        """Write the run's results, with those of its sketch if there is one."""
        return write_results(self.folder, self.subfolder, reasons)
