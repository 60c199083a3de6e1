"""A status for people: two tables, and what hinders the run."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from humanfriendly import format_size
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from producer.progress.status import MAX_FAILURES, PartStatus, RunStatus, WorkerStatus
from producer.progress.words import duration, rate, retry_hint, short
from shared.printable import printable

WIDE = 120
"""From so many columns on, workers have a line with everything."""
TASK_COLUMN = "task and step"
WORKER_COLUMNS = ("host", "worker", "state", TASK_COLUMN, "done", "an hour", "seen", "lease", "versions")
WIDE_ONLY = ("host", "state", "versions")
"""A worker's name begins with its host; who has a task is busy; versions get lines of their own."""
WORRYING_SECONDS = 30.0
"""A worker that is silent for longer may be lost."""


def show(status: RunStatus, width: int) -> RenderableType:
    """Return a status, to be shown on a terminal of so many columns."""
    lines: list[RenderableType] = [Text(headline(status)), Text(), parts_table(status, width), Text()]
    if status.workers:
        lines.append(workers_table(status, width))
        if width < WIDE:
            lines += [Text(line) for line in versions_lines(status)]
    elif status.redis:
        lines.append(Text("no worker is connected; start some with `worker start`"))
    lines += [Text(line) for line in remarks(status)]
    return Group(*lines)


def headline(status: RunStatus) -> str:
    """Return in one line which run this is."""
    return f"run {status.run} of {printable(status.model)} in {printable(status.folder)}"


def parts_table(status: RunStatus, width: int) -> Table:
    """Return a line for each part: how many of its tasks are in which state, how fast, how long still."""
    names = ("part", "wanted", "queued", "running", "finished", "collected", "failed", "an hour", "left")
    rows = []
    for part in status.parts:
        title = printable(part.title)
        # The kind above the id, where there is little room.
        rows.append((title if width >= WIDE else title.replace(" ", "\n"), *_cells(part, status.redis)))
    return _table(names, rows, texts=("part",))


def _cells(part: PartStatus, redis: bool) -> Iterator[str]:
    yield str(part.wanted)
    for count in (part.queued, part.running, part.finished):
        yield str(count) if redis else "-"
    yield str(part.collected)
    yield str(part.failed) if redis else "-"
    yield rate(part.tasks_per_hour) if part.left else "-"
    yield short(part.seconds_left) if part.left else "-"


def workers_table(status: RunStatus, width: int) -> Table:
    """Return a line for each worker: its name, what it does, how fast, and when it was heard of last."""
    names = [*WORKER_COLUMNS] if width >= WIDE else [name for name in WORKER_COLUMNS if name not in WIDE_ONLY]
    rows = []
    for worker in status.workers:
        cells = {
            "host": worker.host,
            "worker": worker.name,
            "state": worker.state,
            TASK_COLUMN: doing(worker) if worker.task else ("-" if width >= WIDE else worker.state),
            "done": str(worker.tasks_done),
            "an hour": rate(worker.tasks_per_hour),
            "seen": seen(worker),
            "lease": short(worker.lease_seconds),
            "versions": versions(worker),
        }
        rows.append([cells[name] for name in names])
    table = _table(names, rows, texts=("host", "worker", "state", TASK_COLUMN, "versions"))
    others = sum(column.min_width or 0 for column in table.columns if column.header != TASK_COLUMN)
    # The tasks give way where there is no room.
    task = table.columns[names.index(TASK_COLUMN)]
    task.min_width, task.max_width = None, max(len(TASK_COLUMN), width - others - len(names))
    return table


def doing(worker: WorkerStatus) -> str:
    """Return which task a worker does, and at which step it is."""
    task, step = worker.task or "-", worker.step or ""
    # Some steps name their task.
    return step if step.startswith(task) else ", ".join(filter(None, (task, step)))


def seen(worker: WorkerStatus) -> str:
    """Return how long ago a worker was heard of, with a mark if that is long."""
    mark = "!" if worker.seconds_silent > WORRYING_SECONDS else ""
    return f"{short(worker.seconds_silent)}{mark}"


def versions(worker: WorkerStatus) -> str:
    """Return which revision a worker is of, and its MLX."""
    revision = worker.versions.get("bitfleet")
    mlx = worker.versions.get("mlx")
    if revision is None:
        return "unknown"
    return f"bitfleet {revision}, mlx {mlx}" if mlx else f"bitfleet {revision}"


def versions_lines(status: RunStatus) -> Iterator[str]:
    """Yield a line for each set of versions that workers have."""
    for text, number in sorted(Counter(map(versions, status.workers)).items()):
        yield f"{number} of {len(status.workers)} workers: {text}"


def remarks(status: RunStatus) -> Iterator[str]:
    """Yield what there is to say beside the tables, a line each."""
    if status.store is not None and status.store.limit_bytes is not None:
        used = format_size(status.store.used_bytes or 0)
        yield f"the relay holds {used} of {format_size(status.store.limit_bytes)}"
    if status.queue_age_seconds is not None:
        yield f"the first job in the queue has waited for {duration(status.queue_age_seconds)}"
    if status.seconds_left is not None:
        yield f"all that is enqueued takes about {duration(status.seconds_left)}"
    for failure in status.failures[:MAX_FAILURES]:
        yield f"failed: {printable(failure)}"
    failed = sum(part.failed for part in status.parts)
    if failed > MAX_FAILURES:
        yield f"{failed - MAX_FAILURES} more failed"
    if failed:
        yield "`producer failures` tells their histories, `producer retry` enqueues them again"
    for part in status.parts:
        if part.cancelled:
            yield f"{printable(part.title)}: {part.cancelled} cancelled; {retry_hint([part.title])}"
    yield from map(printable, status.notes)


def plain_line(status: RunStatus) -> str:
    """Return a status in one line, for a log."""
    parts = ", ".join(
        f"{part.title} {part.collected}/{part.wanted}"
        + (f" ({part.running} running, {part.finished} finished)" if part.left or part.finished else "")
        + (f" ({part.failed} failed)" if part.failed else "")
        for part in status.parts
    )
    return f"{status.at} {parts}; {len(status.workers)} workers, {duration(status.seconds_left)} left"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], *, texts: Collection[str]) -> Table:
    """Return a table without lines; no column but those in `texts` is aligned at its left."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(names):
        cells = [name, *(row[place] for row in rows)]
        table.add_column(
            name,
            justify="left" if name in texts else "right",
            no_wrap=True,
            overflow="ellipsis",
            min_width=max(cell_len(line) for cell in cells for line in cell.splitlines() or [""]),
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table
