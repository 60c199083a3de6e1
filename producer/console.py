"""Output of the commands: progress bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from producer.ledger import PartState
from producer.lines import err, out
from producer.progress.status import MAX_FAILURES, PartStatus
from producer.progress.words import duration, rate, retry_hint
from shared.cli import is_quiet
from shared.jobs.workers import WorkerInfo
from shared.printable import printable, printable_lines

LINE_SECONDS = 10.0
PACE_SECONDS = 60.0
"""Between two lines on rate and time left where no terminal shows them."""
MAX_HOSTS = 6
WIDE = 120
"""From so many columns on, bars are long."""


class PlainConsole(Console):
    """Prints text as it is written: a bracket is a bracket, and a terminal obeys nothing in it."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts, or tables whose cells went through `printable`."""
        super().print(
            *(printable_lines(each) if isinstance(each, str) else each for each in objects), **options
        )


class _Progress(Progress):
    """Bars with a line below them."""

    footer = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.footer:
            yield Text(self.footer, no_wrap=True, overflow="ellipsis")


class Bars:
    """Shows a bar for each part on a terminal, or prints a line from time to time. A context manager."""

    def __init__(self) -> None:
        console = PlainConsole(stderr=True)
        wide = console.width >= WIDE
        self._progress = _Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=40 if wide else 10),
            MofNCompleteColumn(),
            *((TimeElapsedColumn(),) if wide else ()),
            # It gives way where there is no room.
            TextColumn(
                "{task.fields[note]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=console,
            disable=not _are_wanted(),
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last = ("", 0.0)
        self._paced = time.monotonic()

    def __enter__(self) -> "Bars":
        if not self._progress.disable:
            err.console = self._progress.console
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        err.console = None

    def show(
        self,
        parts: Sequence[PartState],
        estimates: Sequence[PartStatus] = (),
        workers: Sequence[WorkerInfo] = (),
    ) -> None:
        """Update the bars, or print a line if something has changed.

        Args:
            parts: how far each part is.
            estimates: in the same order, how fast each is and how long it takes still; may be left out.
            workers: who is connected.
        """
        for part, estimate in zip_longest(parts, estimates):
            if part.title not in self._tasks:
                self._tasks[part.title] = self._progress.add_task(part.title, total=part.total, note="")
            self._progress.update(
                self._tasks[part.title],
                completed=part.done,
                total=part.total,
                note=printable(_note(part, estimate)),
            )
        if not sys.stderr.isatty():
            self._print_line(parts)
            self._print_pace(estimates, workers)
        elif any(each.left for each in estimates):
            self._progress.footer = printable(_hosts(workers))

    def _print_line(self, parts: Sequence[PartState]) -> None:
        line = ", ".join(f"{part.title} {part.done}/{part.total}" for part in parts)
        settled = all(part.settled for part in parts)
        if line != self._last[0] and (settled or time.monotonic() - self._last[1] > LINE_SECONDS):
            err.print(line)
            self._last = (line, time.monotonic())

    def _print_pace(self, estimates: Sequence[PartStatus], workers: Sequence[WorkerInfo]) -> None:
        left = [each for each in estimates if each.left]
        if left and time.monotonic() - self._paced > PACE_SECONDS:
            paces = ", ".join(f"{each.title} {_pace(each)}" for each in left)
            err.print(f"{paces}; {_hosts(workers)}")
            self._paced = time.monotonic()


def _note(part: PartState, estimate: PartStatus | None) -> str:
    running = [why for why in part.reasons.values() if why.startswith("running")]
    words = [_pace(estimate)] if estimate and estimate.left else []
    words += [f"{part.failed} failed"] if part.failed else []
    words += running[:1]
    return ", ".join(words)


def _pace(estimate: PartStatus) -> str:
    if estimate.tasks_per_hour is None:
        return f"{estimate.running} running"
    return f"{rate(estimate.tasks_per_hour)} an hour, {duration(estimate.seconds_left)} left"


def _hosts(workers: Sequence[WorkerInfo]) -> str:
    """Return who is there: hosts, and the number of workers where there are several."""
    counts = Counter(worker.host for worker in workers)
    named = [host if number == 1 else f"{host} ({number})" for host, number in sorted(counts.items())]
    if not named:
        return "no worker is connected"
    more = f" and {len(named) - MAX_HOSTS} more hosts" if len(named) > MAX_HOSTS else ""
    return f"at work: {', '.join(named[:MAX_HOSTS])}{more}"


def _are_wanted() -> bool:
    return sys.stderr.isatty() and not is_quiet()


class CountBar:
    """Shows a bar for things that are counted, or a line from time to time. A context manager."""

    def __init__(self, title: str) -> None:
        self._progress = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            console=PlainConsole(stderr=True),
            disable=not _are_wanted(),
        )
        self._task = self._progress.add_task(title, total=None)
        self._title, self._told = title, time.monotonic()

    def __enter__(self) -> "CountBar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, done: int, total: int) -> None:
        """Update the bar."""
        self._progress.update(self._task, completed=done, total=total)
        if not sys.stderr.isatty() and time.monotonic() - self._told > LINE_SECONDS:
            err.print(f"{self._title}: {done} of {total}")
            self._told = time.monotonic()


def print_missing(part: PartState) -> None:
    """Print which tasks failed, and why: with --quiet, too."""
    if part.trouble:
        out.show(part.trouble)
    for failure in part.failures[:MAX_FAILURES]:
        out.show(f"failed: {failure}")
    if part.failed > MAX_FAILURES:
        out.show(f"and {part.failed - MAX_FAILURES} more failed")
    if part.failures:
        out.print("`producer failures` tells their histories, `producer retry` enqueues them again")
    if part.cancelled:
        out.print(f"{part.title}: {part.cancelled} cancelled; {retry_hint([part.title])}")
