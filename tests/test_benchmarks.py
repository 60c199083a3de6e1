"""The benchmarks run, at sizes that prove nothing, so that they can't rot unseen."""

import json

import numpy as np
import pytest

from benchmarks.calibration import compare_loops
from benchmarks.jobs import compare_workers
from benchmarks.large_folder import measure_pass
from benchmarks.plan_solver import compare
from benchmarks.recovery import measure_recovery
from benchmarks.report import Report, print_report
from benchmarks.sensitivity import compare_engines, spearman, top_in_common
from benchmarks.status import AGAIN, FAILED, measure_status
from shared.plan import Choice


@pytest.mark.slow
def test_engines_agree_on_a_model_of_one_block(capsys):
    report = compare_engines(depth=1, hidden=64, latent=4, text_tokens=3, samples=4, probes=32, spread=0.5)
    figures = {figure["name"]: figure for figure in report.figures}
    assert figures["exact against plain, largest relative difference"]["met"]
    assert figures["sketch against exact, Spearman over all pairs"]["value"] > 0.9
    print_report(report)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["facts"]["layers"] == 19


@pytest.mark.slow
def test_looking_and_steering_is_timed():
    report = measure_status(tasks=8)
    assert {"--help", *FAILED, *AGAIN, "forget --yes RUN"} <= report.facts.keys()


@pytest.mark.slow
def test_every_job_of_both_workers_is_done():
    report = compare_workers(jobs=3, rounds=1)
    assert report.facts["ours: ms a job"] > 0
    assert report.facts["stock: ms a job"] > 0


@pytest.mark.chaos
@pytest.mark.slow
def test_a_killed_workers_job_is_found_by_the_other():
    report = measure_recovery(rounds=1, options={"lease_seconds": 2, "beat_seconds": 0.4})
    assert [figure["value"] > 0 for figure in report.figures] == [True, True]


@pytest.mark.slow
def test_a_second_image_needs_no_reloading_in_the_bare_loop_either():
    report = compare_loops(images=1, steps=2, hidden=64, depth=1, image_size=64)
    assert report.facts["task: seconds, fastest image"] > 0


@pytest.mark.slow
def test_a_large_folder_is_passed_over():
    report = measure_pass(images=4, num_steps=2)
    assert (report.facts["collected"], report.facts["queued"]) == (1, 3)
    assert all(figure["met"] for figure in report.figures)


@pytest.mark.slow
def test_levels_are_those_of_another_library_in_float64():
    # diffusers takes seconds to import.
    from benchmarks.levels import measure_levels

    report = measure_levels(width=64, heads=1, depth=1, steps=2, latent=8, text_tokens=5)
    met = {figure["name"]: figure["met"] for figure in report.figures}
    # A tenth of its peak memory is no model, at this size.
    assert [name for name, met in met.items() if not met and not name.startswith("peak memory")] == []


@pytest.mark.slow
def test_plans_from_levels_are_held_against_plans_from_exact_scores(tmp_path, monkeypatch):
    from benchmarks import exact_scores, plan

    for module in (exact_scores, plan):
        monkeypatch.setattr(module, "CANDIDATES", (*plan.PLAIN, Choice(bits=8, group_size=64)))
    report = exact_scores.compare(tmp_path, levels=1, images=1, probes=1, minutes=1, prompts=8, steps=1)
    assert report.facts["exact scores: products of each candidate"] == 2
    assert [figure["target"] for figure in report.figures] == ["<= 0.6"] * 3
    # One image says little, and yet neither plan is out of all proportion.
    assert all(abs(figure["value"]) < 20 for figure in report.figures)


def test_figures_are_held_against_their_targets():
    report = Report(title="x")
    report.at_least("a", 1.79, 1.8)
    report.at_most("b", 1.05, 1.05)
    assert [figure["met"] for figure in report.figures] == [False, True]


def test_ranks_and_overlap():
    a = np.arange(20.0)
    assert spearman(a, np.exp(a)) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    swapped = a.copy()
    swapped[[9, 10]] = a[[10, 9]]
    assert top_in_common(a, swapped) == 0.9


def test_plans_are_solved_to_the_gap_that_is_promised():
    figures = compare(layers=20, models=1)
    assert figures["one plan, largest gap"] <= 1e-4
    assert figures["its gaps, median"] < 0.05
