"""The documents: links lead somewhere, the index is whole, and commands exist."""

import re
from pathlib import Path

import click
import pytest

import producer.cli
import worker.cli
from tests.readme import README, ROOT, demo_block, shape
from tests.verdicts import verdict_of

DOCS = ROOT / "docs"
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")])
GROUPS: dict[str, click.Group] = {"producer": producer.cli.main, "worker": worker.cli.main}


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_names_every_document() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert {page.name for page in DOCS.glob("*.md") if f"]({page.name})" not in index} == {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_options(page: Path) -> None:
    for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        match = re.match(r"    (?:\S+=\S+ )*(producer|worker) ([a-z-]+)(.*)", line.split(" # ")[0])
        if match:
            parameters = GROUPS[match[1]].commands[match[2]].params
            known = {name for one in parameters for name in (*one.opts, *one.secondary_opts)}
            assert set(re.findall(r"--[a-z0-9-]+", match[3])) <= known, line


def test_the_readme_s_proof_ends_as_proofs_do() -> None:
    """The reason alone: test_end_to_end.py compares all else with a run, whose one prompt shows nothing."""
    (reason,) = re.findall(r"plan wins on 8 prompts: (.*)\. PSNR", "\n".join(demo_block()))
    assert shape(reason) == shape(verdict_of([46, 39, 30]).reason)
