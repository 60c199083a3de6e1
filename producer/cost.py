"""What a command asks for, counted before anything is enqueued; and the refusal of what would take weeks."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from humanfriendly import format_size, format_timespan

from producer.folder.sample_steps import written_steps
from producer.progress.pace import with_timed_hosts
from producer.progress.words import counted
from shared.choices import SampleFiles
from shared.costs import TaskSize, cost_of, kept_shard_bytes, samples_bytes
from shared.errors import InputError
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.jobs.workers import live_workers, speeds_by_host
from shared.kinds.kind import Task
from shared.models import model_spec
from shared.plan import Choice
from shared.runs import RunSettings
from shared.stores.records import Record
from shared.stores.relay_store import RelayStore
from shared.stores.store import ShardStore

if TYPE_CHECKING:
    from producer.fleet import Fleet
    from producer.folder.calib_folder import CalibFolder

MAX_PASSES = 50_000
"""More forward passes are refused without --yes, where nothing tells how long they take."""
MAX_SECONDS = 3 * 24 * 3600.0
"""So is what takes longer by records or timed passes."""
MUCH_BYTES = 3 * 10**9
"""Where the samples of all steps take more, the smaller choices are named."""
SKETCH_HINT = "`--method sketch` estimates the same from a few passes a sample"


class DryRun(Exception):  # noqa: N818
    """Nothing was to be enqueued. No error: it ends the command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Tasks of one kind that a command asks for."""

    kind: str
    run: RunSettings
    """With which they run."""
    tasks: Sequence[Task]
    done: Mapping[str, Record] = field(default_factory=dict)
    """Records of those that are collected, by task id."""
    samples: int = 1
    """Of an exact measurement."""
    probes: int = 1
    candidates: Sequence[Choice] = ()
    variants: int = 1
    sample_files: SampleFiles = "all"
    """Of images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What the missing tasks of a wish cost."""

    tasks: int
    passes: float
    """Forward passes, or what takes as long."""
    pass_flops: float
    """Floating point operations of one."""
    shard_bytes: int
    """Of one task, at most."""


def estimate(wish: Wish) -> Estimate:
    """Return what the missing tasks cost."""
    model = model_spec(wish.run.model)
    size = TaskSize.of(
        wish.run,
        model,
        samples=wish.samples,
        probes=wish.probes,
        candidates=tuple(wish.candidates),
        variants=wish.variants,
    )
    cost = cost_of(wish.kind, model, size)
    missing = sum(task.id not in wish.done for task in wish.tasks)
    return Estimate(
        tasks=missing,
        passes=missing * cost.forward_passes,
        pass_flops=cost.forward_flops,
        shard_bytes=cost.shard_bytes,
    )


class Gate:
    """What tasks pass before they are enqueued: it prints their cost, and may stop them."""

    def __init__(self, tell: Callable[[str], None], *, dry_run: bool = False, yes: bool = False) -> None:
        """`tell` gets one line at a time. With `yes` nothing is refused; with `dry_run` nothing passes."""
        self.dry_run = dry_run
        self.unknown: str | None = None
        """Of a dry run: why there is no fleet to be asked."""
        self.relay_limit: int | None = None
        """Of a dry run: what the limit of the relay would become."""
        self._tell, self._yes = tell, yes
        self._lines: list[str] = []

    def hold(self, folder: "CalibFolder", command: str) -> AbstractContextManager[None]:
        """Return the folder's lock; nothing for a dry run, which writes nothing there."""
        return nullcontext() if self.dry_run else folder.locked(command)

    def pass_through(
        self,
        wishes: Sequence[Wish],
        images: Mapping[str, Record],
        *,
        folder: Path,
        fleet: "Fleet | None",
    ) -> None:
        """Count what the tasks cost, which `tell` prints.

        Args:
            wishes: what is asked for.
            images: records of the folder's images, which tell how fast machines are.
            folder: where samples are written; it need not exist.
            fleet: tells who is connected, and where shards wait; only a dry run may have none.

        Raises:
            InputError: they would take too long, and nobody has said yes.
            DryRun: that was all.
        """
        costs = [estimate(wish) for wish in wishes]
        passes = sum(cost.passes for cost in costs)
        workers = (
            live_workers(TaskQueue(queue_name(fleet.store.id), fleet.connection)) if fleet is not None else []
        )
        hosts = Counter(worker.host for worker in workers)
        seconds = _seconds(wishes, costs, images, hosts, speeds_by_host(workers))
        tasks = sum(cost.tasks for cost in costs)
        if tasks:
            self._lines.append(f"cost: {counted(tasks, 'task')}, {passes_text(passes)}")
            for wish, cost in zip(wishes, costs, strict=True):
                if wish.kind == "calibration":
                    self._lines += disk_lines(wish.run, cost.tasks, wish.sample_files, folder)
            if fleet is not None:
                self._lines += _room(costs, fleet.store, self.relay_limit)
            self._lines.append(_time(passes, seconds, hosts))
        if self.unknown is not None:
            self._lines.append(f"not known: room in the store, and who is connected ({self.unknown})")
        if self.dry_run:
            self.tell()
            self._tell("nothing was enqueued")
            raise DryRun
        if not self._yes:
            refuse(passes, seconds, exact=any(wish.kind == "sensitivity" for wish in wishes))

    def tell(self) -> None:
        """Print what was counted, once: after what was enqueued, which it is about."""
        for line in self._lines:
            self._tell(line)
        self._lines.clear()


def refuse(passes: float, seconds: float | None, *, exact: bool) -> None:
    """Refuse what takes too long.

    Args:
        passes: forward passes.
        seconds: by records or timed passes; None if there are none.
        exact: layers are measured one by one, for which there is a faster way.

    Raises:
        InputError: it does.
    """
    too_long = passes > MAX_PASSES if seconds is None else seconds > MAX_SECONDS
    if not too_long:
        return
    takes = passes_text(passes) if seconds is None else f"about {span_text(seconds)}"
    way = f"{SKETCH_HINT}; or ask for fewer --bits, --layers or --max-images" if exact else "ask for less"
    raise InputError(f"this takes {takes}: {way}; give --yes if you mean it")


def whole_run_passes(
    run: RunSettings,
    *,
    images: int,
    samples: int,
    layers: int | None,
    bits: int,
    probes: int | None,
    verify: int = 0,
) -> float:
    """Return the forward passes of a run on one machine until its report.

    Args:
        run: its settings.
        images: to draw.
        samples: to measure on.
        layers: to be measured exactly; None for all.
        bits: how many bit widths.
        probes: of a sketch, which measures all layers at once; None for an exact measurement.
        verify: how many measurements of a layer follow a sketch.
    """
    model = model_spec(run.model)
    size = TaskSize.of(run, model, samples=samples, probes=probes or 1)
    drawing = images * cost_of("calibration", model, size).forward_passes
    exact = cost_of("sensitivity", model, size).forward_passes
    if probes is not None:
        return drawing + samples * cost_of("sketch", model, size).forward_passes + verify * exact
    every = len(model.transformer.linear_layers) if layers is None else layers
    return drawing + every * bits * exact


def passes_text(passes: float) -> str:
    """Return a number of forward passes in words."""
    return f"about {passes:,.0f} forward passes"


def run_seconds(passes: float, images: Mapping[str, Record], workers: int) -> float | None:
    """Return how long so many passes take by the records of images, on one machine; None without records."""
    rates = _rates(images.values(), lambda record: record.task.run.num_steps)
    return passes / (workers * mean(rates.values())) if rates else None


def span_text(seconds: float) -> str:
    """Return a time in words, in its two largest units."""
    return str(format_timespan(seconds if seconds < 60 else round(seconds), max_units=2))


def disk_lines(run: RunSettings, images: int, choice: SampleFiles, folder: Path) -> list[str]:
    """Return in a line or two what images take once they are collected; nothing for none.

    Args:
        run: of the images.
        images: how many are missing.
        choice: which of their steps get a sample file.
        folder: where they are collected.
    """
    if not images:
        return []
    samples, shards = (images * each for each in _image_bytes(run, choice))
    free = shutil.disk_usage(_existing(folder)).free
    parts = [f"{format_size(samples)} of samples"] if samples else []
    parts += [f"{format_size(shards)} of shards"] if shards else []
    short = "; make room, or name another --calib-dir" if samples + shards > free else ""
    lines = [f"disk: at most {' and '.join(parts)}, {format_size(free)} are free{short}"]
    if choice == "all" and samples > MUCH_BYTES:
        others: dict[SampleFiles, int] = {
            "needed": images * sum(_image_bytes(run, "needed")),
            "none": images * sum(_image_bytes(run, "none")),
        }
        smaller = [
            f"{format_size(size)} with --samples {each}" for each, size in others.items() if size < samples
        ]
        rest = "nothing is lost, and `producer samples` writes the rest"
        lines += [f"disk: {', '.join(smaller)}; {rest}"] if smaller else []
    return lines


def _existing(folder: Path) -> Path:
    """Return a folder, or the one in which it would be made."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


def _image_bytes(run: RunSettings, choice: SampleFiles) -> tuple[int, int]:
    """Of an image's samples, and of its shard if that is kept."""
    model = model_spec(run.model)
    size = TaskSize.of(run, model)
    written = len(written_steps(choice, run.num_steps))
    shard = kept_shard_bytes(model, size) if written < run.num_steps else 0
    return samples_bytes(model, size, written), shard


def _room(costs: Sequence[Estimate], store: ShardStore, limit: int | None) -> Iterator[str]:
    if not isinstance(store, RelayStore):
        return
    wanted = sum(cost.tasks * cost.shard_bytes for cost in costs)
    room = max(0, (limit or store.limit_bytes) - store.used_bytes)
    keep = "; keep a `producer collect --wait` running" if wanted > room else ""
    yield f"relay: at most {format_size(wanted)} of shards, {format_size(room)} are free{keep}"


def _time(passes: float, seconds: float | None, hosts: Mapping[str, int]) -> str:
    if seconds is not None:
        who = (
            f"the {counted(sum(hosts.values()), 'worker')} connected now" if hosts else "the machines so far"
        )
        return f"time: about {span_text(seconds)} by earlier tasks or timed passes, on {who}"
    each = span_text(passes)
    return f"time: not known yet; {each} of work for each second that a forward pass takes"


def _seconds(
    wishes: Sequence[Wish],
    costs: Sequence[Estimate],
    images: Mapping[str, Record],
    hosts: Mapping[str, int],
    speeds: Mapping[str, float],
) -> float | None:
    """Return how long the tasks take on the machines that are connected, else on those of the records.

    A kind's own records count first, in tasks a second; else those of images, in forward passes a second. A
    host without either counts by a pass that its worker has timed: `speeds` are floating point operations a
    second, by host.
    """
    total = 0.0
    for wish, cost in zip(wishes, costs, strict=True):
        if not cost.tasks:
            continue
        own = _rates(wish.done.values(), lambda record: 1)
        rates = own or _rates(images.values(), lambda record: record.task.run.num_steps)
        each = {host: 1 / rate for host, rate in rates.items()}
        timed = with_timed_hosts(each, speeds, None if own else cost.pass_flops)
        rates = {host: 1 / seconds for host, seconds in timed.items()}
        if not rates and cost.passes:
            return None
        if rates and (own or cost.passes):
            there = hosts or dict.fromkeys(rates, 1)
            speed = sum(count * rates.get(host, mean(rates.values())) for host, count in there.items())
            total += (cost.tasks if own else cost.passes) / speed
    return total


def _rates(records: Iterable[Record], work: Callable[[Record], float]) -> dict[str, float]:
    """Return work a second, by host."""
    done, seconds = Counter[str](), Counter[str]()
    for record in records:
        done[record.host] += work(record)  # type: ignore[assignment]
        seconds[record.host] += record.seconds  # type: ignore[assignment]
    return {host: done[host] / seconds[host] for host in done if seconds[host] > 0}
