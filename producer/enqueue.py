"""Enqueue: write into the calibration folder what is wanted, then reconcile."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec
from humanfriendly import format_size

from producer.cost import Gate, Wish
from producer.fleet import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.folder.request_file import RequestFile, SketchRequest, union_in_order
from producer.folder.run_file import RunFile, difference, sample_files
from producer.folder.sample_selection import select_parts
from producer.folder.sample_sets import WrittenSet
from producer.folder.tasks import calibration_tasks, exact_tasks, sketch_tasks
from producer.jobs.reconcile import Reconciled, reconcile
from shared.choices import DEFAULT_PROBES, SampleFiles, check_bits
from shared.errors import InputError, ShardCorruptError
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.layout.sample_parts import read_sample_set
from shared.metrics import MIN_IMAGES
from shared.model_card import ModelCard
from shared.plan import Choice
from shared.runs import Compute, RunSettings, SensitivitySettings
from shared.safe_url import safe_url
from shared.stores.records import Record
from shared.stores.relay_store import RELAY_ID, RelayStore
from shared.stores.store import MAX_PORTABLE_BYTES, ShardStore


def enqueue_calibration(
    folder: CalibFolder,
    settings: RunSettings,
    prompts: Sequence[str],
    num_images: int,
    fleet: Fleet | None,
    *,
    drop_finished: bool = False,
    samples: SampleFiles | None = None,
    gate: Gate | None = None,
) -> tuple[RunFile, Reconciled]:
    """Enqueue the first `num_images` images of a run. Images that were wanted before are still wanted.

    `samples` says which of their steps get a sample file when they are collected; None leaves that as it is.
    The folder's run continues if its prompts are the first of those given here, so prompts can be added.
    Before the first image is collected, the settings may change; with `drop_finished` even if some are
    finished.

    Raises:
        InputError: the folder holds another run, or images of one are finished and not to be dropped.
    """
    with turn(folder, "enqueue-calibration", gate):
        return _enqueue_calibration(
            folder, settings, prompts, num_images, fleet, drop_finished, samples, gate
        )


def _enqueue_calibration(
    folder: CalibFolder,
    settings: RunSettings,
    prompts: Sequence[str],
    num_images: int,
    fleet: Fleet | None,
    drop_finished: bool,
    samples: SampleFiles | None,
    gate: Gate | None,
) -> tuple[RunFile, Reconciled]:
    old = folder.read_run()
    wanted = list(prompts[:num_images])
    if old and _goes_on(old, settings, prompts):
        settings = old.settings
        wanted = max(wanted, list(old.prompts), key=len)
    store_id, store_url = (fleet.store.id, fleet.store_url) if fleet else (RELAY_ID, None)
    if fleet is None and old is not None:
        store_id, store_url = old.store_id, old.store
    run = RunFile(
        settings=settings,
        prompts=tuple(wanted),
        store_id=store_id,
        store=safe_url(store_url) if store_url else None,
        samples=sample_files(old, samples),
    )
    folder.check_run(run)
    tasks = calibration_tasks(run)
    if gate:
        wish = Wish(
            kind="calibration",
            run=run.settings,
            tasks=tasks,
            done=folder.records.read(),
            sample_files=run.samples,
        )
        show_cost(gate, folder, fleet, wish)
    fleet = beyond_the_gate(fleet)
    if old and old.settings != settings:
        # Nothing of the old run was collected, or `check_run` would have refused. Before the new run is
        # written: if this process is killed in between, the old one is enqueued again.
        _replace_run(folder, old, run, fleet, drop_finished)
    folder.write_run(run)
    folder.cancelled.remove(task.id for task in tasks)
    whole, _ = folder.images.look(tasks, renew=True)
    return run, reconcile(
        tasks,
        frozenset(whole),
        connection=fleet.connection,
        store=fleet.store,
        retry_failed=True,
        folder=folder.root,
    )


def turn(folder: CalibFolder, command: str, gate: Gate | None) -> AbstractContextManager[None]:
    """Return the folder's lock, unless the gate is that of a dry run."""
    return gate.hold(folder, command) if gate else folder.locked(command)


def beyond_the_gate(fleet: Fleet | None) -> Fleet:
    """Return the fleet: only a dry run may have none, and that ends at the gate."""
    assert fleet is not None
    return fleet


def show_cost(gate: Gate, folder: CalibFolder, fleet: Fleet | None, *wishes: Wish) -> None:
    """Let wishes pass the gate.

    Raises:
        InputError, DryRun: they don't.
    """
    gate.pass_through(
        wishes,
        folder.records.read(),
        folder=folder.root,
        fleet=fleet,
    )


def _replace_run(folder: CalibFolder, old: RunFile, new: RunFile, fleet: Fleet, drop_finished: bool) -> None:
    """Take a run that nobody needs any more out of the queue and the store."""
    store = _store_of(old, fleet)
    ids = [task.id for task in calibration_tasks(old)]
    finished = store.record_ids(old.settings.id).intersection(ids) if store else set()
    if finished and not drop_finished:
        raise InputError(
            f"{len(finished)} images of run {old.settings.id} are finished and wait in "
            f"{old.store or 'the Redis relay'}; these settings differ in {difference(old, new)}: use another "
            "--calib-dir to keep both, or drop those images with --drop-finished"
        )
    TaskQueue(queue_name(old.store_id), fleet.connection).withdraw(ids)
    if store is None:
        folder.tell(f"what is finished of run {old.settings.id} stays in {old.store}; delete it there")
        return
    # Some may have been finished meanwhile.
    finished = store.record_ids(old.settings.id).intersection(ids)
    for task_id in finished:
        store.discard(old.settings.id, task_id)
    if finished:
        folder.tell(f"{len(finished)} finished images of run {old.settings.id} were dropped")


def _store_of(run: RunFile, fleet: Fleet) -> ShardStore | None:
    """Return a run's store; None if this command was not given its URL."""
    if run.store_id == fleet.store.id:
        return fleet.store
    return RelayStore(fleet.connection) if run.store_id == RELAY_ID else None


def _goes_on(old: RunFile, settings: RunSettings, prompts: Sequence[str]) -> bool:
    """Return whether the settings are the run's, and the prompts too as far as both lists go."""
    same = msgspec.structs.replace(settings, prompts_sha256=old.settings.prompts_sha256)
    return same == old.settings and all(
        before == now for before, now in zip(old.prompts, prompts, strict=False)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityOptions:
    """The options of a sensitivity run."""

    bits: Sequence[int]
    group_size: int
    max_images: int
    step_stride: int
    layers: str
    """Patterns of dotted paths, separated by commas; used by exact measurements only."""
    sketch: bool = False
    probes: int = DEFAULT_PROBES
    verify: int = 0
    until: float | None = None
    precision: Compute = "float32"


def enqueue_sensitivity(
    folder: CalibFolder, options: SensitivityOptions, fleet: Fleet | None, gate: Gate | None = None
) -> tuple[RequestFile, Reconciled]:
    """Enqueue exact measurements or a sketch on some of the samples.

    Raises:
        InputError: images are not collected yet, no layer matches, or MLX lacks a bit width.
    """
    with turn(folder, "enqueue-sensitivity", gate):
        return _enqueue_sensitivity(folder, options, fleet, gate)


def _enqueue_sensitivity(
    folder: CalibFolder, options: SensitivityOptions, fleet: Fleet | None, gate: Gate | None
) -> tuple[RequestFile, Reconciled]:
    run = folder.require_run()
    card = folder.read_model()
    if options.until is not None and options.max_images < MIN_IMAGES:
        raise InputError(
            f"--until needs the differences between {MIN_IMAGES} images or more to stop by, and "
            f"{options.max_images} are to be measured on; raise --max-images, or leave out --until"
        )
    dry_run = gate is not None and gate.dry_run
    _check_collected(folder, run, options.max_images, renew=not dry_run)
    if card is None:
        raise InputError(f"{folder.root} holds no model.json yet; run `producer collect` first")
    parts = select_parts(folder, options.max_images, options.step_stride)
    written = folder.sample_sets.write(parts, dry_run=dry_run)
    if fleet is not None:
        _check_room(written, fleet.store)
    settings = SensitivitySettings(
        run_id=run.settings.id,
        sample_set_sha256=_older_name(folder, options, written) or written.digest,
        group_size=options.group_size,
        until=options.until,
        compute=options.precision,
    )
    subfolder = folder.sensitivity(settings.id)
    old = subfolder.read_request()
    request = _request(old, settings, options, card, written.samples)
    if gate:
        show_cost(gate, folder, fleet, *_wishes(request, run, subfolder.records.read()))
    fleet = beyond_the_gate(fleet)
    if old is not None:
        _withdraw_sketch(folder, old, request, run, fleet)
    subfolder.write_request(request)
    folder.sample_sets.supply(settings.sample_set_sha256, fleet.store, old=subfolder.old_samples_path)
    tasks = [*sketch_tasks(request, run), *exact_tasks(request, run)]
    folder.cancelled.remove(task.id for task in tasks)
    done = frozenset(subfolder.records.read())
    return request, reconcile(
        tasks,
        done,
        connection=fleet.connection,
        store=fleet.store,
        retry_failed=True,
        folder=folder.root,
    )


def _wishes(request: RequestFile, run: RunFile, done: Mapping[str, Record]) -> Iterator[Wish]:
    exact, sketch = exact_tasks(request, run), sketch_tasks(request, run)
    ids = {task.id for task in exact}
    yield Wish(
        kind="sensitivity",
        run=run.settings,
        tasks=exact,
        done={task_id: record for task_id, record in done.items() if task_id in ids},
        samples=request.samples,
    )
    if request.sketch:
        yield Wish(
            kind="sketch",
            run=run.settings,
            tasks=sketch,
            done={task_id: record for task_id, record in done.items() if task_id not in ids},
            probes=request.sketch.probes,
            candidates=msgspec.convert(
                [{"bits": bits, "group_size": request.settings.group_size} for bits in request.sketch.bits],
                list[Choice],
            ),
        )


def _withdraw_sketch(
    folder: CalibFolder, old: RequestFile, new: RequestFile, run: RunFile, fleet: Fleet
) -> None:
    """Take a sketch that is replaced by another one out of the queue and the store, verifications included.

    What was collected of it stays in the folder.
    """
    wanted = {task.id for task in (*sketch_tasks(new, run), *exact_tasks(new, run))}
    before = [task.id for task in (*sketch_tasks(old, run), *exact_tasks(old, run))]
    ids = [task_id for task_id in before if task_id not in wanted]
    if not ids:
        return
    TaskQueue(queue_name(run.store_id), fleet.connection).withdraw(ids)
    finished = fleet.store.record_ids(old.settings.id).intersection(ids)
    for task_id in finished:
        fleet.store.discard(old.settings.id, task_id)
    folder.tell(
        f"the sketch that this one replaces is withdrawn: {len(ids)} tasks, of which {len(finished)} were "
        "finished and not collected"
    )


def _check_room(written: WrittenSet, store: ShardStore) -> None:
    if store.capacity is not None and written.size > store.capacity:
        raise InputError(
            f"the samples to measure on have {format_size(written.size)}, and {store.label} may hold "
            f"{format_size(store.capacity)}: give a larger --relay-limit, fewer --max-images, a larger "
            "--step-stride, or another --store"
        )


def _older_name(folder: CalibFolder, options: SensitivityOptions, written: WrittenSet) -> str | None:
    """Return the digest by which an older revision named the same samples; None if there is none.

    What was measured on them can then be added to.
    """
    for subfolder, request in folder.readable_requests():
        path, digest = subfolder.old_samples_path, request.settings.sample_set_sha256
        same_choice = (request.max_images, request.step_stride) == (options.max_images, options.step_stride)
        if not same_choice or not path.exists() or path.stat().st_size > MAX_PORTABLE_BYTES:
            continue

        def blob(digest: str, old: Path = path) -> bytes:
            return folder.sample_sets.read(digest, old=old)

        with suppress(InputError, ShardCorruptError):
            if read_sample_set(digest, blob).equals(read_sample_set(written.digest, blob)):
                return digest
    return None


def _request(
    old: RequestFile | None,
    settings: SensitivitySettings,
    options: SensitivityOptions,
    card: ModelCard,
    samples: int,
) -> RequestFile:
    """Return the old request, extended by what is wanted now."""
    bits = check_bits(options.bits)
    base = old or RequestFile(
        settings=settings,
        layers=(),
        bits=(),
        samples=samples,
        max_images=options.max_images,
        step_stride=options.step_stride,
    )
    if options.sketch:
        sketch = SketchRequest(bits=tuple(bits), probes=options.probes, verify=options.verify)
        # Another sketch has other uncertainties, so other pairs are to be verified.
        verify = base.verify if base.sketch == sketch else ()
        return msgspec.structs.replace(base, sketch=sketch, verify=verify)
    paths = matching_layers(card, options.layers, options.group_size)
    return msgspec.structs.replace(
        base,
        layers=union_in_order([layer.path for layer in card.layers], paths, base.layers),
        bits=tuple(sorted({*bits, *base.bits})),
    )


def matching_layers(card: ModelCard, pattern: str, group_size: int) -> list[str]:
    """Return the paths of the layers that patterns, separated by commas, mean, and that fill groups.

    Raises:
        InputError: there is none.
    """
    if not card.layers:
        raise InputError(f"{card.model} has no layer left to measure: its checkpoint is quantized already")
    patterns = [part.strip() for part in pattern.split(",") if part.strip()]
    matching = [layer for layer in card.layers if any(fnmatchcase(layer.path, part) for part in patterns)]
    if not matching:
        raise InputError(
            f"no layer matches {pattern!r}; layers are named like {card.layers[-1].path!r}, and * matches all"
        )
    # mlx.core.quantize needs whole groups along a weight's inputs.
    measurable = [layer.path for layer in matching if layer.shape[1] % group_size == 0]
    if not measurable:
        raise InputError(f"no matching layer's inputs can be divided into groups of {group_size}")
    return measurable


def _check_collected(folder: CalibFolder, run: RunFile, max_images: int, *, renew: bool) -> None:
    needed = min(max_images, len(run.prompts))
    tasks = calibration_tasks(run)
    records, damages = folder.images.look(tasks, renew=renew)
    first = [task.id for task in tasks[:needed]]
    if damaged := [damages[task_id] for task_id in first if task_id in damages]:
        raise InputError(
            f"{damaged[0]}; run `producer collect --wait`, which mends it or has the image drawn again"
        )
    if missing := [task_id for task_id in first if task_id not in records]:
        have = needed - len(missing)
        hint = f", or use --max-images {have}" if have and first[0] in records else ""
        raise InputError(
            f"{len(missing)} of the {needed} images to measure on are not collected yet; "
            f"run `producer collect --wait`{hint}"
        )
