"""Machines that round differently are named in the report."""

from collections.abc import Callable
from typing import Any

import msgspec

from producer.report.numerics import numerics_warnings
from producer.report.render import render_report
from producer.results.merge import FinishedTask, host_timings, merge_results
from shared.stores.records import Record
from tests.conftest import Example
from tests.reports import contents_of
from tests.tasks import image_task, layer_task, record_of

M1_MAX = {"mlx": "0.32.4", "architecture": "applegpu_g13s", "tf32": "off"}
M1_ULTRA = {"mlx": "0.32.4", "architecture": "applegpu_g13d", "tf32": "off"}
M4 = {"mlx": "0.32.4", "architecture": "applegpu_g16g", "tf32": "off"}


def warnings(kind: str = "sensitivity", **hosts: dict[str, str]) -> list[str]:
    task = layer_task() if kind == "sensitivity" else image_task()
    records = [record_of(task, b"", host=host, versions=versions) for host, versions in hosts.items()]
    return numerics_warnings(host_timings(records))


def test_equal_machines_are_no_matter() -> None:
    assert warnings(studio=M1_MAX, tower=M1_ULTRA) == []
    assert warnings() == []
    # Records of before told neither device nor TF32.
    assert warnings(studio=M1_MAX, old={"mlx": "0.32.4"}) == []


def test_other_families_and_versions_are_told_with_their_hosts() -> None:
    assert warnings(studio=M1_MAX, air=M4, mini=M1_ULTRA | {"mlx": "0.32.5"}) == [
        "Measured with different versions of MLX, which round differently: "
        "0.32.4 on air, studio; 0.32.5 on mini.",
        "Measured with different families of chips, which round differently: "
        "applegpu_g13 on mini, studio; applegpu_g16 on air.",
    ]


def test_one_host_that_was_brought_up_to_date_in_between() -> None:
    records = [
        record_of(layer_task(bits=bits), b"", versions=M1_MAX | {"mlx": f"0.32.{bits}"}) for bits in (4, 5)
    ]
    (timings,) = host_timings(records)
    assert timings.versions["mlx"] == "0.32.4 and 0.32.5"
    assert "0.32.4 on studio; 0.32.5 on studio" in numerics_warnings([timings])[0]


def test_tf32_is_told_of_a_single_machine() -> None:
    (warning,) = warnings(studio=M1_MAX, new=M1_MAX | {"tf32": "allowed"})
    assert "TF32 was allowed on new:" in warning
    assert "MLX_ENABLE_TF32=0" in warning


def test_who_only_drew_images_does_not_count() -> None:
    assert warnings("calibration", studio=M1_MAX, air=M4) == []


def test_the_report_shows_it(make_example: Callable[..., Example]) -> None:
    example: Any = make_example()

    def told(record: Record) -> Record:
        versions = {"mlx": "0.32.4" if record.host == "studio" else "0.32.5"}
        return msgspec.structs.replace(record, versions=versions)

    def report(finished: list[FinishedTask]) -> str:
        results = merge_results(finished, run=example.run, sensitivity=example.sensitivity, card=example.card)
        return render_report(contents_of(results))

    same = example.finished()
    mixed = [FinishedTask(task=done.task, shard=done.shard, record=told(done.record)) for done in same]

    assert "round differently" not in report(same)
    assert "0.32.4 on studio; 0.32.5 on air" in report(mixed)
