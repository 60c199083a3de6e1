"""The report as a browser would parse it: what it says, what it refuses to load, and that it escapes."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from producer.report import formatting
from producer.report.averages import by_depth, by_kind
from producer.report.heatmap import COLOURS, Scale, heatmap, scale_of
from producer.report.render import render_report
from producer.results.merge import merge_results
from producer.results.results import Metrics, MissingTask, Results

Make = Callable[..., Any]
FIRST = "context_embedder"
PNG = b"\x89PNG\r\n\x1a\n not really"
HOSTILE = "<script>alert('x')</script>\"&'</title>"


class Page(HTMLParser):
    """Collects cells of the heatmap, scripts, images, loaded addresses and all visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cells: list[dict[str, str]] = []
        self.scripts: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self._open.append(tag)
        self.links += [given[name] for name in ("src", "href", "xlink:href", "action") if name in given]
        if tag == "td" and " bits" in given.get("title", ""):
            self.cells.append(given | {"text": ""})
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
            if where == "td" and self.cells and not self.cells[-1]["text"]:
                self.cells[-1]["text"] = data


def merged(example: Any, missing: list[MissingTask] | None = None) -> Results:
    gone = {(task.layer, task.bits) for task in missing or []}
    finished = [pair for pair in example.finished() if (pair.task.layer, pair.task.bits) not in gone]
    return merge_results(
        finished,
        run=example.run,
        sensitivity=example.sensitivity,
        card=example.card,
        missing=missing or [],
    )


@pytest.fixture(scope="module")
def results(make_example: Make) -> Results:
    missing = [MissingTask(layer=FIRST, bits=8, reason=f"failed on {HOSTILE}")]
    return merged(make_example(), missing)


@pytest.fixture(scope="module")
def html(results: Results) -> str:
    return render_report(results, [(f"image 0: {HOSTILE}", PNG)])


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_every_layer_has_a_cell_at_every_bit_width(page: Page, results: Results) -> None:
    assert len(page.cells) == 34 * 3
    titles = [cell["title"] for cell in page.cells]
    for layer in results.layers:
        for bits in results.bits:
            assert sum(title.startswith(f"{layer.path} at {bits} bits: ") for title in titles) == 1


def test_cells_say_the_relative_error_and_its_interval(page: Page, results: Results) -> None:
    pair = next(p for p in results.measurements if p.layer == "final_layer.linear" and p.bits == 4)
    metrics = pair.buckets["all"]
    cell = next(c for c in page.cells if c["title"].startswith("final_layer.linear at 4 bits"))
    assert metrics.relative_error is not None
    assert float(cell["text"]) == pytest.approx(100 * metrics.relative_error, rel=0.05)
    error, low, high = (float(number) for number in re.findall(r"[\d.]+", cell["title"].split(": ")[1])[:3])
    assert low <= error <= high
    assert high == pytest.approx(100 * (metrics.relative_error_high or 0), rel=0.05)


def test_dead_and_missing_cells_are_told_apart(page: Page) -> None:
    dead = [cell for cell in page.cells if cell["class"] == "dead"]
    assert [cell["text"] for cell in dead] == ["dead"] * 3
    assert all("1.text_transformer_block.attn.q_proj" in cell["title"] for cell in dead)
    (missing,) = (cell for cell in page.cells if cell["class"] == "missing")
    assert missing["title"] == f"{FIRST} at 8 bits: missing, failed on {HOSTILE}"
    assert "data-cell" not in missing
    assert "incomplete" in page.text
    assert "Missing: 1 of 102" in page.text


def test_the_switch_has_the_numbers_of_every_bucket(page: Page, results: Results) -> None:
    data = json.loads(page.scripts[0])
    switched = [cell for cell in page.cells if "data-cell" in cell]
    assert [int(cell["data-cell"]) for cell in switched] == list(range(len(data)))
    assert len(data) == len(results.measurements)
    pairs = {(pair.layer, pair.bits): pair for pair in results.measurements}
    for cell, (path, bits, dead, shown) in zip(switched, data, strict=True):
        pair = pairs[path, bits]
        assert cell["title"].startswith(f"{path} at {bits} bits")
        assert dead == pair.dead
        assert [cell["text"], cell["class"]] == shown[0][:2]
        for words, bucket in zip(shown, ("all", "early", "mid", "late"), strict=True):
            metrics = pair.buckets[bucket]
            assert words[2] == formatting.error_with_interval(metrics)
            assert words[3] == formatting.decibel(metrics)


def test_a_bucket_without_samples_can_not_be_chosen(make_example: Make) -> None:
    html = render_report(merged(make_example(num_steps=1, images=2, bits=(4,))))
    inputs = re.findall(r'<input type="radio"[^>]*value="(\w+)"([^>]*)>', html)
    assert [(name, "disabled" in rest) for name, rest in inputs] == [
        ("all", False),
        ("early", False),
        ("mid", True),
        ("late", True),
    ]
    assert json.loads(Page(html).scripts[0])[0][3][2:] == [None, None]


def test_colours_rise_with_the_error(page: Page) -> None:
    shades = sorted(
        (float(cell["text"]), int(cell["class"][1:])) for cell in page.cells if cell["class"][0] == "c"
    )
    assert len({shade for _, shade in shades}) > 20
    assert all(lower[1] <= higher[1] + 1 for lower, higher in pairwise(shades))
    assert shades[0][1] < 5
    assert shades[-1][1] == COLOURS - 1


def test_nothing_is_loaded_and_nothing_unescaped(page: Page, html: str) -> None:
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert page.tags.count("script") == 2
    assert page.tags.count("title") == 1
    assert "default-src 'none'" in html
    assert HOSTILE not in html
    assert HOSTILE in page.text
    assert not re.search(r"url\((?!#)|@import", html)


def test_previews_are_in_the_file(page: Page) -> None:
    (image,) = (link for link in page.links if link.startswith("data:"))
    assert base64.b64decode(image.partition(",")[2]) == PNG


def test_same_input_gives_the_same_text(results: Results, html: str) -> None:
    assert render_report(results, [(f"image 0: {HOSTILE}", PNG)]) == html


def test_most_sensitive_layers_come_first(html: str, results: Results) -> None:
    scores = {
        pair.layer: pair.buckets["all"].relative_error or 0
        for pair in results.measurements
        if pair.bits == 4 and not pair.dead
    }
    table = html[html.index('id="most-sensitive"') :]
    listed = [path.replace("<wbr>", "") for path in re.findall(r'<td class="text path">(.*?)</td>', table)]
    assert listed == sorted(scores, key=lambda layer: -scores[layer])[:20]


def test_dead_layers_are_not_ranked(make_example: Make) -> None:
    example = make_example()
    block = [pair for pair in example.finished() if "blocks.1." in pair.task.layer]
    html = render_report(
        merge_results(block, run=example.run, sensitivity=example.sensitivity, card=example.card)
    )
    table = html[html.index('id="most-sensitive"') : html.index('id="averages"')]
    assert table.count("<tr>") == 1 + 13
    assert "text_transformer_block.<wbr>attn.<wbr>q_proj" not in table


def test_what_lies_within_the_noise_floor_is_marked_and_not_ranked(make_example: Make) -> None:
    example = make_example()
    noisy, *rest = (pair for pair in example.finished() if pair.task.bits == 4)
    shard = replace(noisy.shard, noise_squared_error=noisy.shard.squared_error)
    html = render_report(
        merge_results(
            [replace(noisy, shard=shard), *rest],
            run=example.run,
            sensitivity=example.sensitivity,
            card=example.card,
        )
    )
    table = html[html.index('id="most-sensitive"') : html.index('id="averages"')]
    assert "1 within twice the noise floor at 4 bits: not ranked" in table
    assert f'<td class="text path">{noisy.task.layer}<' not in table
    assert html.count('<td class="noise"') == 1
    assert "within the noise floor" in html


def test_hosts_settings_and_floor_are_told(page: Page) -> None:
    for words in ("tiny-sd3", "studio", "air", "mlx 0.32.4", "7.5", "float32", "1e-5%", "4 images"):
        assert words in page.text
    assert "Student’s t over 4 images" in page.text


def test_the_report_says_why_there_are_no_intervals(make_example: Make) -> None:
    text = Page(render_report(merged(make_example(images=3)))).text
    assert "No intervals: 3 images were measured on, and fewer than 4 don’t tell" in text
    assert "without intervals: they take 4 images" in text


def test_the_forward_pass_and_a_guidance_are_told(results: Results) -> None:
    run = msgspec.structs.replace(results.run, reference="published", guidance=3.25)
    text = render_report(msgspec.structs.replace(results, run=run))
    assert "<dt>Forward pass</dt><dd>published</dd>" in text
    assert "<dt>Guidance embedding</dt><dd>3.25</dd>" in text
    plain = render_report(results)
    assert "<dt>Forward pass</dt><dd>diffusionkit</dd>" in plain
    assert "Guidance embedding" not in plain


def test_nothing_collected_yet(make_example: Make) -> None:
    example = make_example()
    empty = merge_results([], run=example.run, sensitivity=example.sensitivity, card=example.card)
    html = render_report(empty)
    assert "Nothing has been collected yet" in html
    assert "<svg" not in html
    only_missing = [MissingTask(layer=FIRST, bits=2, reason="queued")]
    started = merge_results(
        [], run=example.run, sensitivity=example.sensitivity, card=example.card, missing=only_missing
    )
    assert [cell["class"] for cell in Page(render_report(started)).cells] == ["missing"]


def test_averages_are_root_mean_squares_of_live_layers(results: Results) -> None:
    kinds, depth = by_kind(results), by_depth(results)
    errors = {(p.layer, p.bits): p.buckets["all"].relative_error or 0.0 for p in results.measurements}
    block = "multimodal_transformer_blocks."
    live = [errors[f"{block}0.text_transformer_block.attn.q_proj", 4]]
    assert kinds["text q"][4] == pytest.approx(live[0])
    image = [errors[f"{block}{i}.image_transformer_block.attn.q_proj", 4] ** 2 for i in range(2)]
    assert kinds["image q"][4] == pytest.approx((sum(image) / 2) ** 0.5)
    last = [
        value**2 for (layer, bits), value in errors.items() if layer.startswith(f"{block}1.") and bits == 2
    ]
    assert depth["block 1"][2] == pytest.approx((sum(last) / (len(last) - 1)) ** 0.5)
    assert list(depth) == ["block 0", "block 1"]
    assert (list(kinds)[:2], list(kinds)[-1]) == (["embedders", "image q"], "final layer")


def test_scale_spans_all_buckets_and_layers_not_asked_for_are_left_out(make_example: Make) -> None:
    example = make_example(bits=(4,))
    finished = [pair for pair in example.finished() if pair.task.layer.startswith("final")]
    results = merge_results(finished, run=example.run, sensitivity=example.sensitivity, card=example.card)
    (group,) = heatmap(results, scale_of(results))
    assert (group.name, [row.short for row in group.rows]) == ("final layer", ["adaLN", "linear"])
    largest = max(m.relative_error or 0 for p in results.measurements for m in p.buckets.values())
    assert 10 ** scale_of(results).high == pytest.approx(largest)


def test_scale() -> None:
    scale = Scale(-3.5, 0.25)
    assert scale.index(1e-9) == scale.index(0) == 0
    assert scale.index(10) == COLOURS - 1
    assert [label for _, label in scale.decades] == ["0.1%", "1%", "10%", "100%"]
    assert scale.decades[0][0] == pytest.approx(100 * 0.5 / 3.75)


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


def test_the_chart_s_lines_have_ids_that_the_page_colours(results: Results) -> None:
    html = render_report(results)
    svg = html[html.index("<svg") : html.index("</svg>")]
    for index in range(len(results.bits)):
        for where in ("by-depth", "by-kind-of-layer", "legend"):
            assert f'<g id="series-{index}-{where}">' in svg
        assert f'g[id^="series-{index}-"] {{ color: var(--series-{index}); }}' in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
