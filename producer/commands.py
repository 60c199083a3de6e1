"""The commands, one function each: they call the library and print the outcome."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from humanfriendly import format_size
from platformdirs import user_data_path

from producer.collect import Collector
from producer.console import Bars, CountBar, print_missing
from producer.cost import Gate
from producer.enqueue import SensitivityOptions
from producer.enqueue import enqueue_calibration as ask_for_images
from producer.enqueue import enqueue_sensitivity as ask_for_layers
from producer.fleet import Fleet, check_store
from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import sample_files
from producer.folder.sample_steps import default_step_stride
from producer.interrupts import Interrupts
from producer.jobs.reconcile import Reconciled
from producer.jobs.serve_redis import FleetRedis, RedisOptions, check_password
from producer.jobs.unserved import strangers, unserved
from producer.jobs.who import who_is_there
from producer.kinds.registry import parts_of
from producer.ledger import Ledger, PartState
from producer.lines import err, out
from producer.progress.survey import estimate
from producer.progress.words import counted
from producer.prompts import COLUMN, default_prompts, read_prompts
from producer.report.write import write_report
from producer.sample_files import remove_samples, write_samples
from producer.settings import run_settings
from producer.steering.halt import halts
from producer.steering.room import crowding
from shared.awake import awake
from shared.choices import DEFAULT_MAX_IMAGES, SampleFiles
from shared.errors import InputError, RedisUnavailableError
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.jobs.workers import WorkerInfo, live_workers
from shared.models import Reference, model_spec
from shared.runs import RunSettings
from shared.safe_url import safe_url
from shared.sizes import parse_size
from shared.stores.relay_store import RELAY_ID

PATIENT_PASSES = 5


def read_settings(
    *,
    prompt_csv: Path | None,
    prompt_column: str = COLUMN,
    num_images: int,
    num_steps: int | None,
    cfg_weight: float | None,
    seed: int,
    image_size: int | None,
    model: str,
    checkpoint: Path | None,
    use_t5: bool | None,
    guidance: float | None = None,
    reference: Reference | None = None,
) -> tuple[RunSettings, list[str]]:
    """Read and check the options of a run. This needs no Redis."""
    prompts = read_prompts(prompt_csv or default_prompts(model), num_images, prompt_column)
    settings = run_settings(
        model=model,
        prompts=prompts,
        num_steps=num_steps,
        cfg_weight=cfg_weight,
        image_size=image_size,
        seed=seed,
        use_t5=use_t5,
        checkpoint=checkpoint,
        guidance=guidance,
        reference=reference,
    )
    return settings, prompts


def enqueue_calibration(
    calib_dir: Path,
    settings: RunSettings,
    prompts: Sequence[str],
    num_images: int,
    fleet: Fleet | None,
    *,
    drop_finished: bool = False,
    samples: SampleFiles | None = None,
    gate: Gate | None = None,
) -> None:
    """Enqueue images and print the outcome."""
    folder = CalibFolder(calib_dir, _complain)
    before = sample_files(folder.read_run(), None)
    run, reconciled = ask_for_images(
        folder,
        settings,
        prompts,
        num_images,
        fleet,
        drop_finished=drop_finished,
        samples=samples,
        gate=gate,
    )
    guidance = "" if settings.guidance is None else f"guidance {settings.guidance:g}, "
    out.print(
        f"run {run.settings.id}: {counted(len(run.prompts), 'image')} of {settings.model}, "
        f"{settings.num_steps} steps, cfg {settings.cfg_weight:g}, {guidance}{settings.image_size} px, "
        f"seed {settings.seed}, {settings.reference} forward pass in {settings.precision} "
        f"({format_size(model_spec(settings.model).weight_bytes)} of weights)"
    )
    if run.samples != before and reconciled.done:
        out.print(
            f"samples: {run.samples}, for images that are collected from now on; those of the "
            f"{len(reconciled.done)} that are here stay as they are (`producer samples`)"
        )
    say_enqueued(reconciled, "image")


def enqueue_sensitivity(
    calib_dir: Path,
    fleet: Fleet | None,
    *,
    max_images: int | None,
    step_stride: int | None,
    group_size: str,
    method: str,
    gate: Gate | None = None,
    **options: Any,
) -> None:
    """Enqueue the measurements and print the outcome."""
    if options["verify"] and method != "sketch":
        raise InputError("--verify goes with --method sketch; --method exact measures everything exactly")
    if options["precision"] == "model" and method == "sketch":
        raise InputError(
            "a sketch is always computed in float32; leave out --precision model, or use --method exact"
        )
    folder = CalibFolder(calib_dir, _complain)
    run = folder.require_run()
    check_store(run.store_id, run.store, fleet)
    asked = SensitivityOptions(
        max_images=min(max_images or DEFAULT_MAX_IMAGES, len(run.prompts)),
        step_stride=step_stride or default_step_stride(run.settings.num_steps),
        group_size=int(group_size),
        sketch=method == "sketch",
        **options,
    )
    request, reconciled = ask_for_layers(folder, asked, fleet, gate)
    steps = "every step" if asked.step_stride == 1 else f"one step in {asked.step_stride}"
    what = f"{counted(len(request.layers), 'layer')} at {', '.join(map(str, request.bits))} bits exactly"
    if request.sketch:
        bits = ", ".join(map(str, request.sketch.bits))
        sketch = f"all layers at {bits} bits by a sketch of {request.sketch.probes} probes"
        what = f"{sketch}, {what}" if request.layers else sketch
    out.print(
        f"sensitivity {request.settings.id}: {what}, groups of {group_size}, "
        f"on {counted(request.samples, 'sample')} ({counted(asked.max_images, 'image')}, {steps})"
    )
    say_enqueued(reconciled, "task")


def say_enqueued(reconciled: Reconciled, thing: str) -> None:
    """Print how many tasks were enqueued, and how many need not be."""
    parts = [f"{counted(len(reconciled.enqueued), thing)} enqueued"]
    for count, what in (
        (len(reconciled.in_flight), "already queued or running"),
        (len(reconciled.in_store), "finished, to be collected"),
        (len(reconciled.done), "collected"),
    ):
        if count:
            parts.append(f"{count} {what}")
    out.print(", ".join(parts))


def say_if_nobody_works(fleet: Fleet | None) -> None:
    """Print a hint if no worker is connected."""
    if fleet is not None and not _workers(fleet):
        option = "" if fleet.store.id == RELAY_ID else f" --store {safe_url(fleet.store_url or '')}"
        out.print(f"no worker is connected yet; on every Mac: worker start --redis-url URL{option}")


def collect(
    calib_dir: Path,
    fleet: Fleet,
    *,
    wait: bool,
    interrupts: Interrupts,
    alive: Callable[[], None] | None = None,
) -> bool:
    """Collect once, or until the rest has failed; return whether everything is there."""
    folder = CalibFolder(calib_dir, _complain)
    run = folder.require_run()
    check_store(run.store_id, run.store, fleet)
    ledger = Ledger(folder, fleet.connection, fleet.store)
    collector = Collector(ledger, complain=_complain)
    with awake() if wait else nullcontext(), Bars() as bars:

        def show(states: Sequence[PartState]) -> None:
            present = who_is_there(fleet.connection, fleet.store.id)
            bars.show(states, estimate([*ledger.parts()], states, present, None), present.workers)

        if wait:
            checks = (interrupts.check, alive or _NobodyWorks(fleet).check)
            parts = collector.collect_until_settled(show, checks)
        else:
            parts = collector.collect()
            bars.show(parts)
    for line in collector.drops.summary():
        _complain(line)
    page = collector.write_results(parts)
    _say_collected(folder, parts)
    _say_report(folder, page)
    return all(part.complete for part in parts) and not collector.without_results


def _workers(fleet: Fleet) -> list[WorkerInfo]:
    return live_workers(TaskQueue(queue_name(fleet.store.id), fleet.connection))


class _NobodyWorks:
    """Prints hints, each once, if no worker is connected during a wait, or none that can do what waits."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._passes = 0
        self._said: list[str] = []

    def check(self) -> None:
        """Check for workers; called after each pass."""
        self._passes += 1
        if self._passes % PATIENT_PASSES:
            return
        lines = list(self._why())
        if lines != self._said:
            for line in lines:
                err.show(f"waiting, but {line}")
        self._said = lines

    def _why(self) -> Iterator[str]:
        workers = _workers(self._fleet)
        if not workers:
            yield "no worker is connected; start some with `worker start`"
        yield from halts(self._fleet)
        yield from crowding(self._fleet)
        yield from strangers(workers)
        yield from unserved(self._fleet.connection, self._fleet.store.id, workers)


def _complain(problem: str) -> None:
    err.show(problem)


def _say_collected(folder: CalibFolder, parts: Sequence[PartState]) -> None:
    for part in parts:
        missing = "" if part.complete else f", {part.total - part.done} missing"
        detail = [f"{part.in_flight} queued or running"] if part.in_flight else []
        detail += [f"{part.failed} failed"] if part.failed else []
        detail += [f"{part.unreadable} can't be read from the store"] if part.unreadable else []
        detail += ["nothing is enqueued"] if part.trouble is not None else []
        detail += [f"{part.given_up} given up"] if part.given_up else []
        detail += [f"{part.cancelled} cancelled"] if part.cancelled else []
        note = f" ({', '.join(detail)})" if detail else ""
        out.print(f"{part.title}: {part.done} of {part.total}{missing}{note}")
        print_missing(part)
    out.print(f"manifest: {folder.manifest_path}")


def samples(calib_dir: Path, *, max_images: int | None, step_stride: int, remove: bool) -> bool:
    """Write sample files or remove them, print the outcome, and return whether no image is damaged."""
    folder = CalibFolder(calib_dir, _complain)
    with CountBar("samples of images") as bar:
        changed = (
            remove_samples(folder, bar.show)
            if remove
            else write_samples(folder, max_images, step_stride, bar.show)
        )
    for damage in changed.damages:
        _complain(f"{damage}; run `producer collect --wait` to have the image drawn again")
    if changed.alone:
        out.print(f"all samples and no shard (`--samples all`): {counted(changed.alone, 'image')}")
    if changed.shards and not changed.files and not changed.damages:
        out.print("nothing to remove" if remove else "every sample that was asked for is there already")
    elif changed.files:
        after = "; `producer samples` writes them again" if remove else f" in {folder.samples_dir}"
        out.print(
            f"{counted(changed.files, 'sample')} of {counted(changed.images, 'image')} "
            f"{'removed' if remove else 'written'}: "
            f"{format_size(changed.size)}{after}"
        )
    return not changed.damages


def serve_redis(folder: Path | None, bind: str, port: int, max_memory: str) -> None:
    """Run a Redis for the fleet until a signal ends it; say how workers reach it."""
    options = RedisOptions(
        password=check_password(os.environ.get("REDIS_PASSWORD")),
        folder=(folder or user_data_path("bitfleet", appauthor=False) / "redis").absolute(),
        bind=bind,
        port=port,
        max_memory=parse_size(max_memory),
    )
    with suppress(KeyboardInterrupt), Interrupts(), awake(), FleetRedis(options) as server:
        host = socket.gethostname()
        out.print(f"Redis listens on port {port} of {host} and keeps its data in {options.folder}")
        out.print(f"workers and producers: export REDIS_URL=redis://:PASSWORD@{host}:{port}")
        code = server.wait()
        raise RedisUnavailableError(
            f"redis-server ended with exit code {code}; see {options.folder / 'redis.log'}"
        )


def report(calib_dir: Path) -> None:
    """Write results and the report of everything that was collected, and print its path.

    Raises:
        InputError: nothing has been measured yet.
    """
    folder = CalibFolder(calib_dir, _complain)
    folder.require_run()
    with folder.locked("report"):
        written = [part.write_results({}) for part in parts_of(folder)]
        if not any(written):
            raise InputError(
                f"{calib_dir} holds no measurement yet; ask for one with `producer enqueue-sensitivity`, "
                "then run `producer collect`"
            )
        page = write_report(folder)
    _say_report(folder, page)


def _say_report(folder: CalibFolder, page: Path) -> None:
    out.print(f"report: {page}")
    for part in parts_of(folder):
        if line := part.conclusion():
            out.print(f"{part.title}: {line}")
