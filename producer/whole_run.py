"""Everything on one machine: images, measurements, a plan, its proof, and the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from producer import commands, export_commands
from producer.cost import disk_lines
from producer.export.target_folder import check_target, origin_of
from producer.fleet import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import sample_files
from producer.folder.verification_request import WINNER
from producer.interrupts import Interrupts
from producer.jobs.local_fleet import LocalWorkers, local_redis
from producer.lines import out
from producer.plan import commands as plan_commands
from producer.plan.prompt_sets import MIN_PROOF, PromptFile, prompt_file
from producer.plan.targets import Target, like, target_bpw
from producer.prompts import default_prompts
from producer.proof import commands as proof_commands
from producer.run_cost import ChosenLayers, Range, RunCost, cost_lines, proof_models, proof_prompts
from shared.choices import DEFAULT_BITS, GROUP_SIZES, SampleFiles
from shared.errors import InputError
from shared.plan_file import same_text
from shared.runs import RunSettings
from shared.stores.open_store import open_store
from shared.stores.relay_store import RELAY_ID

DEFAULT_SIZE = "uniform:4"
"""A plan is as large as this model, if nothing is said."""
_PLAN_DEFAULTS: dict[str, Any] = {
    "keep": (),
    "scores": "image",
    "source": None,
    "buckets": None,
    "step_times": None,
    "max_step_time": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanWishes:
    """What a run is to make of its measurements."""

    bpw: float | None
    """Size in bits a parameter; None for DEFAULT_SIZE."""
    level_images: int
    max_prompts: int
    """Of the proof."""
    rivals: str
    export: Path | None
    """The folder for the model; None for `export` in the calibration folder."""

    def target_folder(self, calib_dir: Path) -> Path:
        """Where the model goes."""
        return self.export or calib_dir / "export"

    @property
    def target(self) -> Target:
        """The size to plan for."""
        return like(DEFAULT_SIZE) if self.bpw is None else target_bpw(self.bpw)


def run(
    calib_dir: Path,
    redis_url: str | None,
    workers: int,
    calibration: dict[str, Any],
    sensitivity: dict[str, Any],
    wishes: PlanWishes | None,
    interrupts: Interrupts,
    *,
    dry_run: bool = False,
) -> bool:
    """Draw images, measure, plan, prove and export, with workers on this machine.

    Args:
        calib_dir: the calibration folder.
        redis_url: a Redis to use; None to start one.
        workers: number of worker processes.
        calibration: options of `producer enqueue-calibration`, its `samples` too, and `yes`: whether it may
            take weeks.
        sensitivity: options of `producer enqueue-sensitivity`.
        wishes: None to end with the report.
        interrupts: of the user.
        dry_run: only say what it costs.

    Returns:
        Whether everything is there.
    """

    def check() -> None:
        local.check()
        chosen.check()

    def collect_all() -> bool:
        return commands.collect(calib_dir, fleet, wait=True, interrupts=interrupts, alive=check)

    drop_finished, yes, samples = (calibration.pop(name) for name in ("drop_finished", "yes", "samples"))
    settings, prompts = commands.read_settings(**calibration)
    cost = RunCost(run=settings, images=calibration["num_images"], sensitivity=sensitivity)
    if dry_run:
        _tell_cost(calib_dir, cost, prompts, calibration, wishes, samples, workers)
        return True
    folder = CalibFolder(calib_dir)
    chosen = ChosenLayers(cost, folder, yes=yes)
    told = chosen.before_anything()
    folder.check_writable()
    out.print(told)
    missing = max(0, calibration["num_images"] - len(folder.records.ids()))
    for line in disk_lines(settings, missing, sample_files(folder.read_run(), samples), calib_dir):
        out.print(line)
    if wishes is not None:
        _check_target(wishes.target_folder(calib_dir), settings)
    arguments = ["--workers", str(workers), "--calib-dir", str(calib_dir), "--quiet"]
    if calibration["checkpoint"]:
        arguments += ["--checkpoint", str(calibration["checkpoint"])]
    with local_redis(redis_url, folder.state_dir / "redis", RELAY_ID) as (url, connection):
        fleet = Fleet(connection=connection, store=open_store(None, connection), store_url=None)
        commands.enqueue_calibration(
            calib_dir,
            settings,
            prompts,
            calibration["num_images"],
            fleet,
            drop_finished=drop_finished,
            samples=samples,
        )
        with LocalWorkers(url, arguments) as local:
            try:
                if not collect_all():
                    return False
                chosen.check()
                commands.enqueue_sensitivity(calib_dir, fleet, **sensitivity)
                if wishes is None:
                    return collect_all()
                return _plan_and_prove(calib_dir, fleet, calibration, wishes, collect_all)
            except KeyboardInterrupt:
                local.now = True
                raise


def _tell_cost(
    calib_dir: Path,
    cost: RunCost,
    prompts: Sequence[str],
    calibration: dict[str, Any],
    wishes: PlanWishes | None,
    samples: SampleFiles | None,
    workers: int,
) -> None:
    """Print what the whole run costs. Nothing is written."""
    folder = CalibFolder(calib_dir)
    levels = min(wishes.level_images, cost.images) if wishes else 0
    drawn, models = Range(0, 0), Range(0, 0)
    if wishes:
        path = calibration["prompt_csv"] or default_prompts(cost.run.model)
        file = PromptFile(path, calibration["prompt_column"]).read()
        drawn = proof_prompts(file, prompts[:levels], wishes.max_prompts)
        models = proof_models(wishes.rivals)
    records = folder.records.read()
    for line in cost_lines(
        cost,
        cost.layers(folder),
        records,
        levels=levels,
        prompts=drawn,
        models=models,
        workers=workers,
    ):
        out.show(line)
    missing = max(0, cost.images - len(records))
    for line in disk_lines(cost.run, missing, sample_files(folder.read_run(), samples), calib_dir):
        out.show(line)
    out.show("nothing was started")


def _check_target(target: Path, settings: RunSettings) -> None:
    """Hours before it is written to: only an export of the same run may be replaced."""
    check_target(target, force=True)
    origin = origin_of(target)
    if origin is not None and origin.run != settings:
        raise InputError(f"{target} holds a model of another run; give --export another folder")


def _plan_and_prove(
    calib_dir: Path,
    fleet: Fleet,
    calibration: dict[str, Any],
    wishes: PlanWishes,
    collect_all: Callable[[], bool],
) -> bool:
    source = {name: calibration[name] for name in ("prompt_csv", "prompt_column")}
    images = min(wishes.level_images, calibration["num_images"])
    plan_commands.enqueue_levels(
        calib_dir, fleet, bits=DEFAULT_BITS, group_sizes=GROUP_SIZES, images=images, **source
    )
    if not collect_all():
        return False
    chosen = calib_dir / "plan.json"
    prompts = prompts_for_a_proof(calib_dir, images, wishes.max_prompts, **source)
    plan_commands.plan(
        calib_dir,
        targets=[wishes.target],
        out_file=chosen,
        choosing=0,
        prediction=0,
        proof=prompts,
        **source,
        **_PLAN_DEFAULTS,
    )
    if prompts:
        asked = proof_commands.enqueue_verification(
            calib_dir, fleet, [chosen], max_prompts=prompts, rivals=wishes.rivals
        )
        if not collect_all():
            return False
        chosen = CalibFolder(calib_dir).verifications.open(asked).root / WINNER
    export_commands.export(
        chosen, wishes.target_folder(calib_dir), checkpoint=calibration["checkpoint"], force=True
    )
    return True


def prompts_for_a_proof(
    calib_dir: Path, images: int, most: int, *, prompt_csv: Path | None, prompt_column: str
) -> int:
    """Return how many prompts a proof may take; 0, with a line that says so, if the file has too few."""
    run = CalibFolder(calib_dir).require_run()
    file = prompt_file(prompt_csv, prompt_column, run)
    taken = {same_text(prompt) for prompt in run.prompts[:images]}
    left = len({same_text(prompt) for prompt in file.read()} - taken)
    least = min(MIN_PROOF, most)
    if left >= least:
        return most
    out.print(
        f"no proof: it needs {least} prompts beyond the {images} of the levels, and {file.path} has {left}; "
        "add some, and give the same command again",
    )
    return 0
