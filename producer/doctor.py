"""`producer doctor`: whether Redis, store and folder can be trusted with a run."""

from collections.abc import Iterator
from pathlib import Path

from humanfriendly import format_size

from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import RunFile
from producer.folder.shard_folder import ShardFolder
from producer.folder.tasks import calibration_tasks
from producer.prompts import COLUMN, default_prompts, read_prompts
from shared.doctor.check import Check, ok, run_checks
from shared.doctor.surroundings import check_disk, check_redis
from shared.errors import BitfleetError, ShardCorruptError
from shared.models import model_spec


def examine(
    folder: CalibFolder,
    *,
    redis_url: str,
    store: str | None,
    model: str,
    prompt_csv: Path | None,
    column: str,
) -> Iterator[Check]:
    """Yield one check after the other; nothing is written into the folder but a file that is deleted at once.

    Args:
        folder: the calibration folder, which need not exist.
        redis_url: of Redis.
        store: URL of the store; None for the relay, or for that of the folder's run.
        model: the one to check, where the folder holds no run.
        prompt_csv: the prompt file; None for the default one.
        column: of the prompts in it.
    """
    run: RunFile | None = None
    try:
        run = folder.read_run()
    except BitfleetError as error:
        yield _failed("Run", error)
    url, store_id = store or (run.store if run else None), run.store_id if run else None
    yield from run_checks([("Redis", lambda: check_redis(redis_url, url, store_id=store_id))])
    yield from run_checks(
        [
            ("Folder", lambda: _check_folder(folder)),
            ("Disk", lambda: check_disk(_existing(folder.root))),
            ("Model", lambda: _check_model(run, model)),
            ("Prompts", lambda: _check_prompts(run, model, prompt_csv, column)),
            ("Samples", lambda: _check_samples(folder, run)),
            ("Records", lambda: _check_shards(folder)),
        ]
    )


def _failed(name: str, error: Exception) -> Check:
    problem, _, cure = str(error).partition("; ")
    return Check(name=name, outcome="failed", found=problem, cure=cure)


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _check_folder(folder: CalibFolder) -> Iterator[Check]:
    if not folder.root.exists():
        yield Check(name="Folder", outcome="skipped", found=f"{folder.root} is not there yet")
        return
    try:
        folder.check_writable()
    except BitfleetError as error:
        yield _failed("Folder", error)
    else:
        yield ok("Folder", f"{folder.root} can be written")


def _check_model(run: RunFile | None, model: str) -> Iterator[Check]:
    try:
        spec = model_spec(run.settings.model if run else model)
        if run:
            spec.check(image_size=run.settings.image_size, use_t5=run.settings.use_t5)
    except BitfleetError as error:
        yield _failed("Model", error)
        return
    about = f", {run.settings.image_size} px, {run.settings.num_steps} steps" if run else ""
    yield ok("Model", f"{spec.id}{about}; weights of {format_size(spec.weight_bytes)} on each worker")


def _check_prompts(run: RunFile | None, model: str, path: Path | None, column: str) -> Iterator[Check]:
    wanted = len(run.prompts) if run else 1
    try:
        file = path or default_prompts(run.settings.model if run else model)
        if path is None and run and not file.exists():
            yield Check(name="Prompts", outcome="skipped", found=f"the run has its own; {file} is not here")
            return
        read_prompts(file, wanted, column or COLUMN)
    except (BitfleetError, OSError) as error:
        yield _failed("Prompts", error)
        return
    yield ok("Prompts", f"{file} has the {wanted} prompts of the run" if run else f"{file} can be read")


def _check_samples(folder: CalibFolder, run: RunFile | None) -> Iterator[Check]:
    """Compare samples and kept shards with their seals: sizes, times, and where times differ the sha256."""
    if run is None:
        yield Check(name="Samples", outcome="skipped", found=f"{folder.root} holds no run yet")
        return
    whole, damages = folder.images.look(calibration_tasks(run))
    if damages:
        yield Check(
            name="Samples",
            outcome="failed",
            found=f"{len(damages)} of {len(whole) + len(damages)} images: {next(iter(damages.values()))}",
            cure="`producer collect --wait` mends what a shard holds, and has the others drawn again",
        )
    else:
        yield ok("Samples", f"{len(whole)} images are as they were collected")


def _check_shards(folder: CalibFolder) -> Iterator[Check]:
    """Compare the collected shards of every measurement with the sha256 in their records."""
    kept: list[ShardFolder] = [
        *folder.sensitivities(),
        *folder.weights.all(),
        *folder.levels.all(),
        *folder.confirms.all(),
        *folder.verifications.all(),
    ]
    count, damaged = 0, []
    for subfolder in kept:
        for record in subfolder.records.read().values():
            count += 1
            try:
                record.check(subfolder.shard_path(record.id).read_bytes())
            except (ShardCorruptError, OSError) as error:
                damaged.append(str(error))
    if damaged:
        yield Check(
            name="Records",
            outcome="failed",
            found=f"{len(damaged)} of {count} measurements: {damaged[0]}",
            cure="`producer collect --wait` has them computed again",
        )
    else:
        yield ok("Records", f"{count} measurements are as their records say")
