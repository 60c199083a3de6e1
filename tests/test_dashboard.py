"""docs/grafana.json asks for series that exist, with the labels that they have."""

import json
import re
from pathlib import Path

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from producer.jobs.who import Present
from producer.progress.exposition import expose
from producer.progress.status import StoreStatus
from shared.jobs.running import RunningJob
from shared.jobs.tally import Done, Tally
from shared.jobs.workers import WorkerInfo
from tests.test_status import busy_run

DASHBOARD = json.loads((Path(__file__).parent.parent / "docs" / "grafana.json").read_text())


def exposed() -> dict[str, set[str]]:
    """The labels of every series of a run at which one worker is at work."""
    run = busy_run(0)
    status = msgspec.structs.replace(
        run,
        parts=[msgspec.structs.replace(run.parts[0], seconds_by_host={"air": 9.0})],
        store=StoreStatus(label="the relay", used_bytes=1, limit_bytes=2),
        queue_age_seconds=1.0,
        seconds_left=1.0,
    )
    worker = WorkerInfo(
        name="air-1",
        host="air",
        state="busy",
        start_id="start",
        seconds_silent=1.0,
        tally=Tally(done={"calibration": Done(tasks=1, seconds=9.0)}),
    )
    job = RunningJob(
        job_id="job", label="image 1", worker="air-1", step="step 2/3", seconds=1.0, lease_seconds=40.0
    )
    text = expose(status, Present(workers=[worker], jobs={"air-1": job}, asides=[], queue_age=1.0))
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_question_has_an_answer() -> None:
    series = exposed()
    questions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert len(questions) >= 12
    for question in questions:
        names = set(re.findall(r"bitfleet_\w+", question))
        assert names <= series.keys(), question
        labels = set().union(*(series[name] for name in names))
        grouped = {label.strip() for by in re.findall(r"by \(([^)]*)\)", question) for label in by.split(",")}
        selected = set(re.findall(r"(\w+)=~?\"", question))
        assert grouped | selected <= labels, question


def test_legends_name_labels_that_are_left() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            outermost = re.search(r"by \(([^)]*)\)", target["expr"])
            left = {label.strip() for label in outermost.group(1).split(",")} if outermost else set()
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= left, panel["title"]


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
