"""Text that others wrote reaches a terminal as text: in the log, in errors, in `status` and `collect`."""

import contextlib
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click import ClickException
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from rich.table import Table

from producer.console import PlainConsole
from shared.cli import OneLineError
from shared.jobs.history import Event, Progress, add_event, set_progress
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.printable import PrintableFormatter, printable, printable_lines
from tests.fleet import ROOT, Fleet

QUEUE = queue_name("relay")
NASTY = "[/x] :smile: \x1b]0;renamed\x07\x1b[2J\x9b5m {task} \u202eback"
SHOWN = r"[/x] :smile: \u001b]0;renamed\u0007\u001b[2J\u009b5m {task} \u202eback"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (NASTY, SHOWN),
        ("two\nlines\tand a tab", "two lines and a tab"),
        ("Übergröße, 図, a\u00a0space", "Übergröße, 図, a\u00a0space"),
        ("\ud800\u2028", r"\ud800\u2028"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(text=st.text(max_size=50))
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    for shown in (printable(text), printable_lines(text).replace("\n", "").replace("\t", "")):
        assert shown.replace("\u00a0", " ").isprintable() or any(letter.isspace() for letter in shown)
        assert not {chr(code) for code in (*range(32), 127, *range(128, 160))} & set(shown)
    shown.encode()


def test_a_long_text_is_cut() -> None:
    assert printable("x" * 5000) == "x" * 1999 + "…"
    assert len(printable("\x1b" * 100, 100)) == 100


def test_an_error_and_a_log_record() -> None:
    error: ClickException = OneLineError(f"bad:\n {NASTY}", 2)
    assert error.message == f"bad: {SHOWN}"
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s\nmore", (NASTY,), None)
    assert PrintableFormatter("%(message)s").format(record) == f"{SHOWN}\nmore"


def test_a_console_takes_no_text_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole()
    table = Table("runs[/old]", box=None)
    table.add_row(printable(NASTY))
    console.print(NASTY)
    console.print(table)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [SHOWN, "runs[/old]", SHOWN]


@pytest.mark.slow
class TestCommands:
    """The real commands, on what somebody wrote into Redis and on a folder with brackets in its name."""

    @pytest.fixture
    def fleet(self, redis: Redis, redis_url: str, tmp_path: Path) -> Fleet:
        fleet = Fleet(tmp_path / "work", redis_url, tmp_path / "cache")
        fleet.enqueue(2, "--calib-dir", "runs[/old]")
        running, failed = (job_id.decode() for job_id in redis.lrange(f"rq:queue:{QUEUE}", 0, -1))
        queue = TaskQueue(QUEUE, redis)
        redis.delete(queue.key)
        redis.zadd(queue.started_job_registry.key, {f"{running}:x": 2**33})
        set_progress(redis, QUEUE, running, Progress(text=NASTY, host=NASTY, worker="w"))
        redis.zadd(queue.failed_job_registry.key, {failed: 2**33})
        add_event(redis, failed, Event(outcome="failed", host=NASTY, worker="w", detail=NASTY))
        redis.rpush(f"bitfleet:history:{failed}", b'{"outcome":"failed","x":' + b"[" * 100_000)
        redis.sadd(f"rq:workers:{QUEUE}", "rq:worker:odd", b"\xff", "rq:worker:odder")
        redis.hset("rq:worker:odd", mapping={"last_heartbeat": "never", "hostname": NASTY})
        heartbeat = "2026-01-02T03:04:05.000000Z"
        redis.hset(
            "rq:worker:odder", mapping={"last_heartbeat": heartbeat, "hostname": NASTY, b"\xff": b"\xff"}
        )
        return fleet

    def test_what_others_wrote_is_told(self, fleet: Fleet) -> None:
        said = fleet.producer("status", "--calib-dir", "runs[/old]")
        assert SHOWN in said
        assert "runs[/old]" in said
        assert "\x1b" not in said
        # On a terminal the progress is a bar's note. The commands of the bars themselves are rich's.
        code, seen = self._on_a_terminal(fleet, "collect", "--calib-dir", "runs[/old]")
        assert code == 3, seen
        assert "renamed" in seen
        assert "\x1b]0;" not in seen
        assert "\x1b[2J" not in seen

    @staticmethod
    def _on_a_terminal(fleet: Fleet, *arguments: str) -> tuple[int, str]:
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "producer.cli", *arguments],
            cwd=fleet.folder,
            env=fleet.environment | {"TERM": "xterm", "COLUMNS": "400", "PYTHONPATH": str(ROOT)},
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        said = b""
        # Reading ends in an error when nobody holds the terminal any more.
        with contextlib.suppress(OSError):
            while chunk := os.read(controller, 65536):
                said += chunk
        os.close(controller)
        return process.wait(60), said.decode()
