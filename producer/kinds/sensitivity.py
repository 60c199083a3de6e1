"""Sensitivity: the (layer, bits) to measure exactly, and their results."""

from collections.abc import Sequence
from pathlib import Path

from producer.folder.calib_folder import CalibFolder
from producer.folder.tasks import exact_tasks
from producer.kinds.part import BrokenPart, Part
from producer.kinds.sampled import SampledPart
from shared.errors import InputError


def find_parts(folder: CalibFolder) -> Sequence[Part]:
    """Return one part per sensitivity run with exact measurements."""
    run = folder.require_run()
    parts: list[Part] = []
    for subfolder in folder.sensitivities():
        try:
            request = subfolder.require_request()
        except InputError as error:
            parts.append(BrokenPart(f"sensitivity {subfolder.root.name}", str(error)))
            continue
        if tasks := exact_tasks(request, run):
            parts.append(SensitivityPart(folder, subfolder, request, tasks))
    return parts


class SensitivityPart(SampledPart):
    """The exact measurements of one sensitivity run."""

    @property
    def title(self) -> str:
        return f"sensitivity {self.request.settings.id}"

    def write_results(self, reasons: dict[str, str]) -> Path | None:
        """Write the run's results, with those of its sketch if there is one."""
        from producer.results.write import write_results

        return write_results(self.folder, self.subfolder, reasons)
