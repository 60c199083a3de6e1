"""Which Pythons and machines `make install` turns down, and what it says; the workflow's make targets."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.supported import PYTHONS, why_unsupported

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


@pytest.mark.parametrize(
    ("version", "system", "machine", "macos", "says"),
    [
        ((3, 12), "darwin", "arm64", "15.1", None),
        ((3, 13), "darwin", "arm64", "26.0", None),
        ((3, 11), "linux", "x86_64", "", None),
        ((3, 10), "linux", "x86_64", "", "Python 3.10; bitfleet runs with 3.11 to 3.13"),
        ((3, 15), "darwin", "arm64", "15.1", "Python 3.15; bitfleet runs with 3.11 to 3.13"),
        ((3, 12), "darwin", "x86_64", "15.1", "built for x86_64, perhaps run by Rosetta"),
        ((3, 12), "darwin", "arm64", "13.6.1", "macOS 13.6.1 is too old: MLX needs 14 or newer"),
    ],
)
def test_what_is_turned_down(
    version: tuple[int, int], system: str, machine: str, macos: str, says: str | None
) -> None:
    why = why_unsupported(version, system, machine, macos)
    assert why == says if says is None else says in str(why)


def test_make_install_asks_first(tmp_path: Path) -> None:
    """With a Python that says it is an old one."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys, runpy; sys.version_info = (3, 10, 0); '
        'runpy.run_path(sys.argv[1], run_name=\'__main__\')" "$@"\n'
    )
    python.chmod(0o755)
    made = subprocess.run(
        ["make", "install", f"PYTHON={python}", f"VENV={tmp_path}/venv"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode != 0
    assert "this is Python 3.10; bitfleet runs with" in made.stderr
    assert not (tmp_path / "venv").exists()


def test_the_file_can_be_read_by_old_pythons() -> None:
    ast.parse((ROOT / "shared" / "supported.py").read_text(), feature_version=(3, 7))


def test_the_workflow_is_valid() -> None:
    command = shutil.which("check-jsonschema", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("check-jsonschema is not installed; make install does")
    arguments = [command, "--builtin-schema", "vendor.github-workflows", str(WORKFLOW)]
    checked = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_run_of_the_workflow_is_a_make_target() -> None:
    text = WORKFLOW.read_text()
    runs = re.findall(r"run: (.*)", text)
    assert {"make install", "make test", "make demo", "make doctor", "make resolve", "make dist"} == set(runs)
    for run in set(runs):
        made = subprocess.run([*run.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
    versions = re.findall(r"\"(3\.\d+)\"", text)
    assert {f"3.{minor}" for minor in range(PYTHONS[0][1], PYTHONS[1][1] + 1)} == set(versions)
