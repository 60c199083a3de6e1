"""A copy of the packages, to which a test adds what a maintainer would add."""

import shutil
from pathlib import Path

from tests.fleet import ROOT


def copy_packages(root: Path) -> Path:
    """Copy `shared`, `producer` and `worker` into a new folder, and return it."""
    for package in ("shared", "producer", "worker"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def replace_in(path: Path, old: str, new: str) -> None:
    """Replace a piece of text that must be there."""
    text = path.read_text()
    assert old in text, f"{path} holds no {old!r}"
    path.write_text(text.replace(old, new, 1))
