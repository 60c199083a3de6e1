"""Results of a folder, as the collector writes them from shards that workers left; no model runs."""

from pathlib import Path

import numpy as np
import pytest
from redis import Redis

from producer.collect import Collector
from producer.enqueue import SensitivityOptions, enqueue_sensitivity
from producer.fleet import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import RunFile
from producer.folder.tasks import calibration_tasks, exact_tasks, sketch_tasks
from producer.ledger import Ledger
from producer.results.results import decode_results
from shared.errors import InputError
from shared.kinds.kind import Task
from shared.kinds.sensitivity import SensitivityShard, SensitivityTask
from shared.kinds.sketch import SketchShard, SketchTask
from shared.stores.relay_store import RelayStore
from tests.calibration_shards import calibration_shard
from tests.tasks import SETTINGS, record_of

RUN = RunFile(settings=SETTINGS, prompts=("first", "second", "third"), store_id="relay", store=None)
LAYER = "final_layer.linear"


def exact_shard(task: SensitivityTask, images: int) -> SensitivityShard:
    n = images * SETTINGS.num_steps
    return SensitivityShard(
        image_index=np.arange(images).repeat(SETTINGS.num_steps),
        step_index=np.tile(np.arange(SETTINGS.num_steps), images),
        squared_error=np.full(n, 4.0**-task.bits),
        squared_reference=np.ones(n),
        noise_squared_error=np.zeros(n),
        cosine=np.ones(n),
        max_abs=np.ones(n),
        output_size=np.array(1024),
        dead=np.array(False),
        weight_squared_error=np.array(0.1),
        weight_squared_norm=np.array(1.0),
        bits_per_weight=np.array(task.bits + 0.5),
    )


def sketch_shard(task: SketchTask) -> SketchShard:
    widths = len(task.bits)
    return SketchShard(
        image_index=np.array(task.sample // SETTINGS.num_steps),
        step_index=np.array(task.sample % SETTINGS.num_steps),
        bits=np.array(task.bits),
        products=np.ones((1, widths, task.probes)),
        squared_reference=np.array(100.0),
        output_size=np.array(1024),
        dead=np.array([False]),
        measurable=np.array([True]),
        weight_squared_error=np.full((1, widths), 0.1),
        weight_squared_norm=np.ones(1),
        bits_per_weight=np.full((1, widths), 4.5),
    )


class Measured:
    """A folder with three collected images, and workers that leave what a test wants."""

    def __init__(self, root: Path, redis: Redis) -> None:
        self.folder, self.store = CalibFolder(root), RelayStore(redis)
        self.fleet = Fleet(connection=redis, store=self.store, store_url=None)
        self.folder.write_run(RUN)
        for task in calibration_tasks(RUN):
            self.leave(task, calibration_shard(task.image_index).to_bytes())
        self.collector = Collector(Ledger(self.folder, redis, self.store), complain=self.complain)
        self.collector.collect()

    def complain(self, problem: str) -> None:
        raise AssertionError(problem)

    def leave(self, task: Task, data: bytes) -> None:
        assert self.store.put(record_of(task, data), data) == "stored"

    def enqueue(self, **options: object) -> list[SensitivityTask | SketchTask]:
        values = {"bits": [4], "group_size": 64, "max_images": 3, "step_stride": 1, "layers": "*"} | options
        request, _ = enqueue_sensitivity(self.folder, SensitivityOptions(**values), self.fleet)  # type: ignore[arg-type]
        return [*sketch_tasks(request, RUN), *exact_tasks(request, RUN)]

    def report(self) -> str:
        return self.collector.write_results(self.collector.collect()).read_text()


@pytest.fixture
def measured(tmp_path: Path, redis: Redis) -> Measured:
    return Measured(tmp_path / "calib", redis)


def test_the_report_shows_the_calibration_images(measured: Measured) -> None:
    report = measured.report()
    shown = [prompt for prompt in RUN.prompts if f"<figcaption>{prompt}</figcaption>" in report]
    assert shown == list(RUN.prompts)
    assert "Nothing to ship yet." in report


def test_an_incomplete_sketch_says_what_is_missing_and_what_it_has(measured: Measured) -> None:
    tasks = measured.enqueue(sketch=True, bits=[2, 4], probes=3)
    assert len(tasks) == 3 * SETTINGS.num_steps
    for task in tasks[:5]:
        assert isinstance(task, SketchTask)
        measured.leave(task, sketch_shard(task).to_bytes())
    report = measured.report()
    assert "estimated by a sketch from 5 of 12 tasks" in report
    assert "7 sketches missing, queued" in report
    (place,) = measured.folder.sensitivities()
    results = decode_results(place.results_path.read_bytes())
    assert [sketch.sample for sketch in results.missing_sketches] == list(range(5, 12))
    assert {sketch.reason for sketch in results.missing_sketches} == {"queued"}
    assert {host.kind for host in results.hosts} == {"calibration", "sketch"}


def test_an_exact_result_beside_a_sketch_that_has_not_begun_is_incomplete(measured: Measured) -> None:
    (exact,) = measured.enqueue()
    assert isinstance(exact, SensitivityTask)
    measured.leave(exact, exact_shard(exact, 3).to_bytes())
    measured.enqueue(sketch=True, probes=3)
    report = measured.report()
    assert "1 of 1 (layer, bits) measured exactly" in report
    assert "12 sketches missing, queued" in report


def test_stopping_early_needs_images_enough_to_stop_by(measured: Measured) -> None:
    with pytest.raises(InputError, match=r"--until needs .* 4 images or more .* 3 are to be measured on"):
        measured.enqueue(until=5.0)
