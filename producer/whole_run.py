"""Everything on one machine: images, measurements, a plan, its proof, and the model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from producer import commands, export_commands
from producer.cost import disk_lines, refuse, whole_run_passes
from producer.export.target_folder import check_target, origin_of
from producer.fleet import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import sample_files
from producer.folder.sample_steps import default_step_stride
from producer.folder.verification_request import WINNER
from producer.interrupts import Interrupts
from producer.jobs.local_fleet import LocalWorkers, local_redis
from producer.lines import out
from producer.plan import commands as plan_commands
from producer.plan.prompt_sets import MIN_PROOF, prompt_file
from producer.plan.targets import Target, like, target_bpw
from producer.proof import commands as proof_commands
from shared.choices import DEFAULT_BITS, DEFAULT_MAX_IMAGES, GROUP_SIZES
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

    Returns:
        Whether everything is there.
    """

    def collect_all() -> bool:
        return commands.collect(calib_dir, fleet, wait=True, interrupts=interrupts, alive=local.check)

    drop_finished, yes, samples = (calibration.pop(name) for name in ("drop_finished", "yes", "samples"))
    settings, prompts = commands.read_settings(**calibration)
    passes = _check_cost(settings, calibration["num_images"], sensitivity, yes=yes)
    folder = CalibFolder(calib_dir)
    folder.check_writable()
    out.print(f"cost until the report: about {passes:,.0f} forward passes")
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
                commands.enqueue_sensitivity(calib_dir, fleet, **sensitivity)
                if wishes is None:
                    return collect_all()
                return _plan_and_prove(calib_dir, fleet, calibration, wishes, collect_all)
            except KeyboardInterrupt:
                local.now = True
                raise


def _check_cost(run: RunSettings, images: int, sensitivity: dict[str, Any], *, yes: bool) -> float:
    """Return the forward passes until the report; refuse what would take weeks, before anything is drawn.

    A choice of layers is not counted: their names come with the first image.
    """
    stride = sensitivity["step_stride"] or default_step_stride(run.num_steps)
    exact = sensitivity["method"] == "exact"
    passes = whole_run_passes(
        run,
        images=images,
        samples=min(sensitivity["max_images"] or DEFAULT_MAX_IMAGES, images) * -(-run.num_steps // stride),
        bits=len(sensitivity["bits"]),
        layers=1 if sensitivity["layers"] != "*" else None,
        probes=None if exact else sensitivity["probes"],
    )
    if not yes:
        refuse(passes, None, exact=exact)
    return passes


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
