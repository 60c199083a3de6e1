"""The report in a real browser: silent, alone, as wide as a phone, whole on paper, and usable by keyboard."""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from producer.report.contents import Pictures
from producer.report.render import render_report
from producer.results.results import MissingTask
from tests.browser import Page, browser, find_chromium
from tests.reports import contents_of, made_plan, made_proof, merged

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the PATH, and CHROME names none"),
]

PHONE = 390
PAPER = 1032
"""Pixels of a landscape A4 sheet between its margins."""
READY = (
    "document.readyState === 'complete' && document.documentElement.classList.contains('drawn')"
    " && document.querySelector('.dt-search input') !== null"
)
LAYERS = "[...document.querySelectorAll('table.layers tbody tr')]"
TOO_WIDE = """
[...document.querySelectorAll('body *')]
  .filter((one) => !one.closest('.skip, .scroll, svg'))
  .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5)
  .map((one) => one.tagName + '.' + one.className)
"""
CUT = """
[...document.querySelectorAll('body *')]
  .filter((one) => !one.closest('.skip, svg') && one.getClientRects().length)
  .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5
    || (getComputedStyle(one).overflowX !== 'visible' && one.scrollWidth > one.clientWidth + 1))
  .map((one) => one.tagName + '.' + one.className)
"""


def png(red: int) -> bytes:
    """A picture of one colour, 8 by 8 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + bytes([red, 40, 40]) * 8) * 8
    head = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def report(make_example: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [MissingTask(layer="context_embedder", bits=8, reason="queued")]
    results = merged(make_example(blocks=3), missing)
    plan = made_plan(results)
    drawn = (("original", png(200)), ("plan", png(201)), ("uniform 4/64", png(90)))
    pictures = (Pictures(prompt="a long prompt about a red square " * 4, drawn=drawn),)
    path = tmp_path_factory.mktemp("report") / "report.html"
    contents = contents_of(results, plans=(plan,), proofs=(made_proof(plan, pictures=pictures),))
    path.write_text(render_report(replace(contents, previews=(("red", png(200)),), files=("run.json",))))
    return path


@pytest.fixture(scope="module")
def page(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_chromium()
    assert program
    with browser(program, tmp_path_factory.mktemp("profile")) as opened:
        opened.size(1280)
        opened.open(report, READY)
        yield opened


def test_the_console_is_silent_and_no_request_leaves(page: Page, report: Path) -> None:
    loud = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert [event for event in page.events if event["method"] in loud] == []
    asked = [event for event in page.events if event["method"] == "Network.requestWillBeSent"]
    addresses = {event["params"]["request"]["url"] for event in asked}
    assert {address for address in addresses if not address.startswith("data:")} == {report.as_uri()}
    assert page.value("document.querySelectorAll('.chart svg').length") == 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_of_charts_stand_out_from_the_card_in_both_schemes(page: Page, scheme: str) -> None:
    page.media(scheme=scheme)
    colours = page.value(
        "[...document.querySelectorAll('.chart .role-axis-label text')]"
        ".map((one) => getComputedStyle(one).fill)"
    )
    ink = page.value("getComputedStyle(document.body).color")
    page.media()
    assert set(colours) == {ink}


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (PHONE, "light")])
def test_axe_finds_nothing_that_keeps_anybody_out(page: Page, width: int, scheme: str) -> None:
    page.size(width)
    page.media(scheme=scheme)
    page.value(f"{files('axe_core_python').joinpath('axe.min.js').read_text()};0")
    found = page.value(
        "axe.run(document, {resultTypes: ['violations']}).then(({violations}) => violations.map("
        "(rule) => `${rule.id}: ${rule.help}: ${rule.nodes.map((node) => node.html).join(' ')}`))"
    )
    page.media()
    page.size(1280)
    assert found == []


def test_a_screen_reader_is_told_what_each_chart_is(page: Page) -> None:
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = [(node["role"]["value"], node["name"]["value"]) for node in nodes if node.get("name")]
    told = [name for role, name in roles if role == "image"]
    labels = page.value("[...document.querySelectorAll('.chart')].map((one) => one.ariaLabel)")
    assert len(labels) == 5
    assert set(labels) <= set(told)
    # Vega's own words for a chart, and for each of its marks.
    assert not [role for role, _ in roles if role.lower().startswith("graphics")]


def test_nothing_is_wider_than_a_phone(page: Page) -> None:
    page.size(PHONE)
    page.wait("Math.max(...[...document.querySelectorAll('.chart svg')].map((one) => one.clientWidth)) < 390")
    assert page.value("document.documentElement.scrollWidth") == PHONE
    assert page.value(TOO_WIDE) == []
    page.size(1280)


def test_nothing_is_cut_on_paper(page: Page) -> None:
    page.size(PAPER)
    page.media("print")
    assert page.value(CUT) == []
    assert page.value(f"{LAYERS}.length") == 48
    page.media()
    page.size(1280)


def test_the_keyboard_reaches_the_table_and_sorts_it(page: Page) -> None:
    page.value("document.querySelector('h1').scrollIntoView(), document.activeElement.blur()")
    page.press("Tab")
    assert page.value("document.activeElement.className") == "skip"
    page.press("Enter", "\r")
    page.wait("location.hash === '#layers'")
    heading = "document.activeElement.closest('th')?.textContent ?? document.activeElement.textContent"
    for _ in range(60):
        page.press("Tab")
        if page.value(heading).startswith("4 bits"):
            break
    errors = f"{LAYERS}.map((row) => Number(row.cells[8].dataset.order))"
    before = page.value(errors)
    for direction in ("ascending", "descending"):
        page.press("Enter", "\r")
        page.wait(f"document.querySelector('th[aria-sort]')?.getAttribute('aria-sort') === '{direction}'")
    after = page.value(errors)
    assert before != after == sorted(before, reverse=True)


def test_search_and_filters_leave_the_layers_that_fit(page: Page) -> None:
    count = f"{LAYERS}.filter((row) => row.cells.length > 1).length"
    search = "document.querySelector('.dt-search input')"
    page.value(f"{search}.value = 'mlp.fc1', {search}.dispatchEvent(new Event('input'))")
    page.wait(f"{count} === 6")
    stream = "document.querySelector('select[data-column=\"2\"]')"
    page.value(f"{stream}.value = 'image', {stream}.dispatchEvent(new Event('change'))")
    page.wait(f"{count} === 3")
    page.value(f"{search}.value = '', {search}.dispatchEvent(new Event('input'))")
    page.value(f"{stream}.value = '', {stream}.dispatchEvent(new Event('change'))")
    page.wait(f"{count} === 48")


def test_the_heatmaps_change_with_the_bit_width(page: Page) -> None:
    colours = (
        "[...document.querySelectorAll('#chart-heat-0-mid .mark-rect path')]"
        ".map((one) => one.getAttribute('fill')).join()"
    )
    before = page.value(colours)
    bits = "document.querySelector('select[data-bits]')"
    page.value(f"{bits}.value = '8', {bits}.dispatchEvent(new Event('change'))")
    page.wait(f"{colours} !== {before!r}")


def test_differences_are_dark_where_pictures_agree(page: Page) -> None:
    page.value("document.querySelector('#difference').click()")
    modes = page.value(
        "[...document.querySelectorAll('#pictures img')].map((one) => getComputedStyle(one).mixBlendMode)"
    )
    assert modes == ["normal", "difference", "difference"]
