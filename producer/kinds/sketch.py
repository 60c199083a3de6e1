"""Sketch: the samples to sketch, and the (layer, bits) to verify afterwards."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from producer.folder.calib_folder import CalibFolder
from producer.folder.tasks import sketch_tasks
from producer.kinds.part import Part
from producer.kinds.sampled import SampledPart
from shared.stores.records import Record


def find_parts(folder: CalibFolder) -> Sequence[Part]:
    """Return one part per sensitivity run with a sketch."""
    run = folder.require_run()
    return [
        SketchPart(folder, subfolder, request, tasks)
        for subfolder, request in folder.readable_requests()
        if (tasks := sketch_tasks(request, run))
    ]


class SketchPart(SampledPart):
    """The sketch of one sensitivity run."""

    @property
    def title(self) -> str:
        return f"sketch {self.request.settings.id}"

    def ask_for_more(self, records: dict[str, Record]) -> bool:
        """When the sketch is complete, ask for exact measurements of the pairs that matter most."""
        from producer.results.sketch import estimate
        from producer.results.verify import pairs_to_verify
        from producer.results.write import finished_sketches

        request, card = self.request, self.folder.read_model()
        if request.sketch is None or not request.sketch.verify or request.verify or card is None:
            return False
        if len(records) < len(self.tasks()):
            return False
        shards = [
            done.shard for done in finished_sketches(self.subfolder, request, self.folder.require_run(), card)
        ]
        pairs = pairs_to_verify(estimate(shards), card, request.sketch.verify)
        self.subfolder.write_request(msgspec.structs.replace(request, verify=tuple(pairs)))
        return bool(pairs)

    def write_results(self, reasons: dict[str, str]) -> Path | None:
        """Write the run's results, unless its exact measurements do that for both."""
        from producer.results.write import write_results

        return None if self.request.pairs() else write_results(self.folder, self.subfolder, reasons)
