"""Output of the commands: progress bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from producer.ledger import PartState
from shared.jobs.workers import WorkerInfo
from shared.printable import printable, printable_lines

LINE_SECONDS = 10.0
MAX_FAILURES = 10


class PlainConsole(Console):
    """Prints text as it is written: a bracket is a bracket, and a terminal obeys nothing in it."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts, or tables whose cells went through `printable`."""
        super().print(
            *(printable_lines(each) if isinstance(each, str) else each for each in objects), **options
        )


err = PlainConsole(stderr=True)
out = PlainConsole()


class Bars:
    """Shows a bar for each part on a terminal, or prints a line from time to time. A context manager."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=err,
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, TaskID] = {}
        self._last = ("", 0.0)

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, parts: Sequence[PartState]) -> None:
        """Update the bars, or print a line if something has changed."""
        for part in parts:
            if part.title not in self._tasks:
                self._tasks[part.title] = self._progress.add_task(part.title, total=part.total, note="")
            running = [why for why in part.reasons.values() if why.startswith("running")]
            note = running[0] if running else (f"{len(part.failures)} failed" if part.failures else "")
            self._progress.update(
                self._tasks[part.title], completed=part.done, total=part.total, note=printable(note)
            )
        if not sys.stderr.isatty():
            self._print_line(parts)

    def _print_line(self, parts: Sequence[PartState]) -> None:
        line = ", ".join(f"{part.title} {part.done}/{part.total}" for part in parts)
        settled = all(part.settled for part in parts)
        if line != self._last[0] and (settled or time.monotonic() - self._last[1] > LINE_SECONDS):
            err.print(line)
            self._last = (line, time.monotonic())


class TensorBar:
    """Shows a bar while tensors are written, on a terminal only. A context manager."""

    def __init__(self, title: str) -> None:
        self._progress = Progress(
            TextColumn(title), BarColumn(), MofNCompleteColumn(), console=err, disable=not sys.stderr.isatty()
        )
        self._task = self._progress.add_task(title, total=None)

    def __enter__(self) -> "TensorBar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, done: int, total: int) -> None:
        """Update the bar."""
        self._progress.update(self._task, completed=done, total=total)


def print_parts(parts: Sequence[PartState]) -> None:
    """Print a table of the progress of each part, then the failures."""
    table = Table("", "tasks", "done", "to collect", "queued or running", "failed", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for part in parts:
        counts = (part.total, part.done, part.waiting, part.in_flight, len(part.failures))
        table.add_row(printable(part.title), *map(str, counts))
    out.print(table)
    for part in parts:
        print_missing(part)


def print_missing(part: PartState) -> None:
    """Print which tasks failed, and why."""
    if part.trouble:
        out.print(part.trouble)
    for failure in part.failures[:MAX_FAILURES]:
        out.print(f"failed: {failure}")
    if len(part.failures) > MAX_FAILURES:
        out.print(f"... and {len(part.failures) - MAX_FAILURES} more failed")
    if part.failures:
        out.print("`producer failures` tells their histories, `producer retry` enqueues them again")
    if part.cancelled:
        out.print(
            f"{part.title}: {part.cancelled} cancelled; `producer retry` with its name asks for them again"
        )


def print_workers(workers: Sequence[WorkerInfo]) -> None:
    """Print one line per worker."""
    if not workers:
        out.print("no worker is connected; start some with `worker start`")
    for worker in workers:
        silent = f", silent for {worker.seconds_silent:.0f} s" if worker.seconds_silent > 30 else ""
        out.print(f"worker {worker.name} on {worker.host}: {worker.state}{silent}")
