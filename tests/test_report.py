"""The report as a browser would parse it: what it says, what it refuses to load, and that it escapes."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from producer.report import formatting
from producer.report.charts import predicted_rows, sizes_chart
from producer.report.contents import Contents, Pictures
from producer.report.estimates import read_estimates
from producer.report.layers import layer_rows, spots
from producer.report.libraries import charts, tables
from producer.report.render import render_report
from producer.results.results import Metrics, MissingTask, Results
from tests.planned import plan_of as small_plan
from tests.planned import planned_folder
from tests.reports import contents_of, made_plan, made_proof, merged, results_of
from tests.verdicts import verdict_of

Make = Callable[..., Any]
FIRST = "context_embedder"
PNG = b"\x89PNG\r\n\x1a\n not really"
HOSTILE = "<script>alert('x')</script>\"&'</title>"
MEGABYTE = 1_000_000


class Page(HTMLParser):
    """Collects the cells of tables of layers, scripts, images, loaded addresses and all visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[dict[str, str]]] = []
        self.scripts: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self._open.append(tag)
        self.links += [given[name] for name in ("src", "href", "action") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append(given | {"text": ""})
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        where = self._open[-1] if self._open else ""
        if where == "script":
            self.scripts[-1] += data
        elif where != "style":
            self.text += data
            if "td" in self._open and self.rows[-1]:
                self.rows[-1][-1]["text"] += data

    def layer(self, path: str) -> list[dict[str, str]]:
        """The cells of a layer's row that hold errors."""
        (row,) = (row for row in self.rows if len(row) > 5 and row[1]["text"] == path)
        return [cell for cell in row if "title" in cell]

    @property
    def specs(self) -> dict[str, Any]:
        return dict(json.loads(self.scripts[0]))


@pytest.fixture(scope="module")
def results(make_example: Make) -> Results:
    missing = [MissingTask(layer=FIRST, bits=8, reason=f"failed on {HOSTILE}")]
    return merged(make_example(), missing)


@pytest.fixture(scope="module")
def contents(results: Results) -> Contents:
    plan = made_plan(results)
    drawn = tuple((name, PNG + name.encode()) for name in ("original", "plan", "uniform 4/64"))
    proof = made_proof(plan, pictures=(Pictures(prompt=f"prompt {HOSTILE}", drawn=drawn),))
    return contents_of(
        results,
        plans=(plan,),
        proofs=(proof,),
        previews=((f"image {HOSTILE}", PNG),),
        files=("run.json", "sensitivity/x/results.csv"),
    )


@pytest.fixture(scope="module")
def html(contents: Contents) -> str:
    return render_report(contents)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_every_layer_has_a_row_with_its_choice_and_each_error(page: Page, results: Results) -> None:
    plan = made_plan(results)
    for layer in results.layers:
        assert len(page.layer(layer.path)) == 3
        (row,) = (row for row in page.rows if len(row) > 5 and row[1]["text"] == layer.path)
        choice = plan.layers.get(layer.path)
        assert row[5]["text"] == (choice.label if choice else "as it is")
        assert int(row[4]["data-order"]) == layer.parameters
    assert [cell["text"] for cell in page.rows[-1]] != []


def test_cells_say_the_relative_error_and_its_interval(page: Page, results: Results) -> None:
    pair = next(p for p in results.measurements if p.layer == "final_layer.linear" and p.bits == 4)
    metrics = pair.buckets["all"]
    cell = page.layer("final_layer.linear")[1]
    assert cell["text"] == formatting.error_with_interval(metrics)
    assert float(cell["data-order"]) == metrics.relative_error
    assert f"early {formatting.percent(pair.buckets['early'].relative_error)}" in cell["title"]


def test_dead_missing_and_noisy_cells_are_told_apart_and_not_ranked(make_example: Make) -> None:
    example = make_example()
    noisy, *rest = (pair for pair in example.finished() if pair.task.bits == 4)
    shard = replace(noisy.shard, noise_squared_error=noisy.shard.squared_error)
    gone = [MissingTask(layer="final_layer.linear", bits=4, reason=f"failed on {HOSTILE}")]
    results = results_of(example, [replace(noisy, shard=shard), *rest[:-1]], gone)
    page = Page(render_report(contents_of(results)))
    (noise,), (missing,) = page.layer(noisy.task.layer), page.layer("final_layer.linear")
    (dead,) = page.layer("multimodal_transformer_blocks.1.text_transformer_block.attn.q_proj")
    assert (noise["class"], missing["class"], dead["class"]) == ("within-noise", "missing", "dead")
    assert noise["text"].endswith("within noise") and dead["text"] == "dead"
    assert missing["title"] == f"failed on {HOSTILE}"
    assert [float(cell["data-order"]) for cell in (noise, dead, missing)] == [0, -1, -2]
    assert "1 (layer, bits) missing, failed on" in page.text
    assert "1 of 33" in page.text.split("not ranked: ")[1][:20]
    marks = {(results.layers[spot.layer].path, spot.mark, spot.error) for spot in spots(results)}
    assert {mark for path, mark, _ in marks if path == noisy.task.layer} == {"within noise"}
    assert all(error is None for _, mark, error in marks if mark not in ("exact", "estimated"))


def test_the_heatmaps_have_the_error_of_each_third(page: Page, results: Results) -> None:
    found = {
        (results.layers[value["n"]].path, value["b"], bucket): value
        for bucket in ("early", "mid", "late")
        for value in page.specs[f"chart-heat-0-{bucket}"]["data"]["values"]
    }
    assert len(found) == 34 * 3 * 3
    for pair in results.measurements:
        for bucket in ("early", "mid", "late"):
            value = found[pair.layer, pair.bits, bucket]
            error = pair.buckets[bucket].relative_error
            assert value["m"] == ("dead" if pair.dead else "exact")
            assert value["e"] == (None if pair.dead else pytest.approx(100 * (error or 0), rel=0.01))
    assert found[FIRST, 8, "mid"]["m"] == "missing"


def test_a_third_without_samples_has_no_heatmap(make_example: Make) -> None:
    specs = Page(render_report(contents_of(merged(make_example(num_steps=1, images=2, bits=(4,)))))).specs
    assert list(specs) == ["chart-heat-0-early"]


def test_the_strip_shows_what_each_layer_gets(page: Page, results: Results) -> None:
    plan = made_plan(results)
    values = {value["path"]: value["bits"] for value in page.specs["chart-strip"]["data"]["values"]}
    assert values == {
        layer.path: str(plan.layers[layer.path].bits) if layer.path in plan.layers else "16"
        for layer in results.layers
    }
    lines = page.specs["chart-strip"]["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert lines.index("image q") < lines.index("text q") < lines.index("adaLN")


def test_nothing_is_loaded_and_nothing_unescaped(page: Page, html: str) -> None:
    local = ("data:image/png;base64,", "#", "run.json", "sensitivity/x/results.csv", "plans/")
    assert all(link.startswith(local) for link in page.links)
    assert page.tags.count("script") == 4
    assert page.tags.count("title") == 1
    assert "default-src 'none'" in html
    assert HOSTILE not in html
    assert HOSTILE in page.text
    assert len(page.ids) == len(set(page.ids))


def test_texts_of_others_pass_the_door(results: Results) -> None:
    host = msgspec.structs.replace(results.hosts[0], host="studio\x1b[2J")
    text = render_report(contents_of(results, hosts=(host,)))
    assert "\x1b" not in text
    assert "studio\\u001b[2J" in text


def test_pictures_stand_side_by_side_with_the_original(page: Page, html: str) -> None:
    shown = [base64.b64decode(link.partition(",")[2]) for link in page.links if link.startswith("data:")]
    assert shown == [PNG + b"original", PNG + b"plan", PNG + b"uniform 4/64", PNG]
    original = base64.b64encode(PNG + b"original").decode()
    assert f"--original:url(data:image/png;base64,{original})" in html


def test_same_contents_give_the_same_text(contents: Contents, html: str) -> None:
    assert render_report(contents) == html


def test_the_first_sentence_says_what_to_ship(contents: Contents, results: Results) -> None:
    def title(shown: Contents) -> str:
        found = re.search("<h1>(.*?)</h1>", render_report(shown))
        assert found
        return found[1]

    plan = made_plan(results)
    only = contents_of(results, plans=(plan,))
    assert title(contents) == "Ship the plan: 2.00 bits a weight, 1 MB instead of 8 MB."
    assert title(only).startswith("Nothing is proved yet: a plan of 2.00 bits")
    assert title(contents_of(results)) == "Nothing to ship yet: layers are measured, and there is no plan."
    assert title(Contents(run=results.run)) == "Nothing to ship yet."
    lost = made_proof(plan, verdict_of([22, 22, 15]))
    assert title(replace(only, proofs=(lost,))).startswith("Ship uniform 4/64: ")
    open_ended = msgspec.structs.replace(verdict_of([30, 22, 15]), complete=False)
    so_far = replace(only, proofs=(made_proof(plan, open_ended),))
    assert title(so_far).startswith("So far the plan leads: ")
    assert "is not complete: 8 prompts so far" in render_report(so_far)


def test_the_proof_is_told_with_its_rivals(page: Page, results: Results) -> None:
    for words in ("it is shown to be better than uniform 4/64", "noise floor", "90.0 dB"):
        assert words in page.text
    rival = next(row for row in page.rows if row and row[0]["text"] == "uniform 4/64" and len(row) == 8)
    assert rival[-1]["text"] == "better, at 8 prompts"
    few = made_proof(made_plan(results), verdict_of([30, 22, 15], prompts=3, most=3, floor=None))
    text = render_report(contents_of(results, proofs=(few,)))
    assert "nothing can be claimed" in text and "not measured" in text


def test_a_complete_folder_has_no_warnings(make_example: Make) -> None:
    results = merged(make_example())
    assert "None: nothing that was asked for is missing" in render_report(contents_of(results))
    unread = render_report(contents_of(results, unreadable=("plan x: of another format",)))
    assert "plan x: of another format" in unread and "1 warning</a> to read first" in unread


def test_estimates_of_every_size_agree_with_the_plan(tmp_path: Path) -> None:
    folder = planned_folder(tmp_path)
    estimates = read_estimates(folder, None)
    assert estimates is not None and estimates.images == 16
    sizes, errors = zip(*((one.stored_bytes, one.error) for one in estimates.frontier), strict=True)
    assert list(sizes) == sorted(sizes) and list(errors) == sorted(errors, reverse=True)
    assert len(estimates.uniform) == 18
    for one in estimates.uniform:
        best = np.interp(one.stored_bytes, sizes, errors)
        assert best <= one.error or one.stored_bytes < sizes[0]
    plan = small_plan(folder.require_model())
    error = estimates.error(plan.layers)
    assert error is not None and estimates.error({}) == 0
    spec = sizes_chart((), estimates)
    assert spec is not None and len(spec["layer"][1]["data"]["values"]) == 18
    assert read_estimates(planned_folder(tmp_path / "none", images=0), None) is None


def test_predictions_come_from_a_confirmation_or_from_scores(results: Results, tmp_path: Path) -> None:
    folder = planned_folder(tmp_path)
    estimates = read_estimates(folder, None)
    assert estimates is not None
    plan = small_plan(folder.require_model())
    rows = predicted_rows(contents_of(results, proofs=(made_proof(plan),), estimates=estimates))
    assert [row["by"] for row in rows] == ["scores"] * 3
    assert rows[0]["predicted"] == estimates.error(plan.layers)
    assert rows[1]["measured"] == 0.04
    assert predicted_rows(contents_of(results, proofs=(made_proof(plan),))) == []


def test_rows_without_measurements_are_those_of_the_card(tmp_path: Path) -> None:
    card = planned_folder(tmp_path).require_model()
    rows = layer_rows(card, None, small_plan(card).layers)
    assert [row.path for row in rows] == [layer.path for layer in card.layers]
    assert {row.choice for row in rows} == {"4/32"} and not any(row.cells for row in rows)


def test_libraries_come_with_their_licences(html: str) -> None:
    assert "vegaEmbed" in charts().script and "Interactive Data Lab" in charts().licence
    assert "DataTables" in tables().script and "Permission is hereby granted" in tables().licence
    assert "Interactive Data Lab" in html and "Permission is hereby granted" in html


@pytest.mark.slow
def test_a_large_model_s_page_is_small(make_example: Make) -> None:
    results = merged(make_example(blocks=24, bits=(2, 3, 4, 5, 6, 8), images=4, num_steps=3))
    assert len(results.layers) == 342
    page = render_report(contents_of(results, plans=(made_plan(results),)))
    assert len(page.encode()) < 5 * MEGABYTE


def test_hosts_settings_and_floor_are_told(page: Page) -> None:
    for words in ("tiny-sd3", "studio", "air", "mlx 0.32.4", "7.5", "float32", "1e-5%", "4 images"):
        assert words in page.text
    assert "Student’s t over 4 images" in page.text


def test_the_report_says_why_there_are_no_intervals(make_example: Make) -> None:
    text = Page(render_report(contents_of(merged(make_example(images=3))))).text
    assert "No intervals: 3 images were measured on, and fewer than 4 don’t tell" in text


def test_the_forward_pass_and_a_guidance_are_told(results: Results) -> None:
    run = msgspec.structs.replace(results.run, reference="published", guidance=3.25)
    text = render_report(contents_of(msgspec.structs.replace(results, run=run)))
    assert "<dt>Forward pass</dt><dd>published</dd>" in text
    assert "<dt>Guidance embedding</dt><dd>3.25</dd>" in text
    plain = render_report(contents_of(results))
    assert "<dt>Forward pass</dt><dd>diffusionkit</dd>" in plain
    assert "Guidance embedding" not in plain


def test_nothing_collected_yet(make_example: Make) -> None:
    example = make_example()
    html = render_report(contents_of(results_of(example, [])))
    assert "Nothing has been collected yet" in html
    assert "vegaEmbed" not in html
    started = results_of(example, [], [MissingTask(layer=FIRST, bits=2, reason="queued")])
    first = Page(render_report(contents_of(started))).layer(FIRST)
    assert [cell["class"] for cell in first][:1] == ["missing"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.0, "0%"), (1.1, "110%"), (0.9996, "100%"), (0.0999, "10%"), (0.0995, "10%"),
        (0.0312, "3.1%"), (0.00312, "0.31%"), (0.000312, "0.031%"), (9.96e-5, "0.010%"),
        (3.1e-5, "0.003%"), (9.7e-5, "0.01%"), (3e-6, "3e-4%"),
        (9.7e-7, "1e-4%"),
    ],
)  # fmt: skip
def test_percent(value: float | None, text: str) -> None:
    assert formatting.percent(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.50 s"), (12.34, "12.3 s"), (59.97, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


def test_infinite_and_undefined_are_told_apart() -> None:
    def metrics(relative_error: float | None, sqnr_db: float | None) -> Metrics:
        return Metrics(
            samples=1,
            mse=0.0,
            relative_error=relative_error,
            relative_error_low=None,
            relative_error_high=None,
            sqnr_db=sqnr_db,
            cosine=1.0,
            max_abs=0.0,
            noise_relative_error=None,
        )

    assert formatting.decibel(metrics(0.0, None)) == "∞"
    assert formatting.decibel(metrics(None, None)) == "–"
    assert formatting.decibel(metrics(0.1, 20.0)) == "20.0 dB"
    assert formatting.error_with_interval(metrics(0.1, 20.0)) == "10%"
