"""What the first Mac is asked for, as far as it can be tried without one."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import producer.cli
from shared.doctor.check import ok
from worker.doctor.first_mac import DEMO, check_demo, check_session

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize(
    ("environment", "session"),
    [
        ({"SSH_CONNECTION": "x", "TERM_PROGRAM": "tmux"}, "ssh"),
        ({"TMUX": "x", "TERM_PROGRAM": "tmux"}, "tmux"),
        ({"TERM_PROGRAM": "Apple_Terminal"}, "Apple_Terminal"),
        ({"TERM_PROGRAM": "vscode"}, "vscode"),
    ],
)
def test_the_session(environment: dict[str, str], session: str) -> None:
    assert list(check_session(environment)) == [ok("Session", session)]


def command(folder: Path, script: str) -> Path:
    path = folder / "producer"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is made up: the demo itself is `make demo`."""
    monkeypatch.setenv("REDIS_URL", "redis://:secret@fleet")
    (check,) = check_demo(command(tmp_path, 'test -z "$REDIS_URL" && test "$1 $3" = "run demo"'))
    assert check.outcome == "ok", check.found
    assert check.figures["seconds"] > 0
    assert check.figures["peak_bytes"] > 1e6
    (check,) = check_demo(command(tmp_path, "echo all went wrong >&2; exit 3"))
    assert (check.outcome, check.found) == ("failed", "exit code 3: all went wrong")


def test_the_demo_is_a_command_that_producer_knows() -> None:
    result = CliRunner().invoke(producer.cli.main, [*DEMO, "--help"])
    assert result.exit_code == 0, result.output
    known = {name for parameter in producer.cli.main.commands["run"].params for name in parameter.opts}
    assert {word for word in DEMO if word.startswith("--")} <= known


def test_the_commands_of_the_page_exist() -> None:
    text = (DOCS / "first-mac.md").read_text()
    for program, name in re.findall(r"^    (?:\S+=\S+ )?(producer|worker) ([a-z-]+)", text, re.MULTILINE):
        assert (
            name
            in (producer.cli.main if program == "producer" else __import__("worker.cli").cli.main).commands
        )
