"""What a calibration folder holds, as far as it has come: the content of the report."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from producer.folder.calib_folder import CalibFolder
from producer.folder.kept_folder import KeptFolder
from producer.folder.verification_request import PLAN, VARIANTS, VERDICT, WINNER, VerificationRequest
from producer.plan.prediction import Prediction, read_predictions
from producer.plan.write import PREDICTION
from producer.proof.measured import measured
from producer.proof.verdict import UNIFORM, Verdict, decode_verdict
from producer.report.estimates import Estimates, read_estimates
from producer.results.merge import host_timings
from producer.results.results import HostTimings, Results, decode_results
from shared.errors import BitfleetError
from shared.kinds.verification import VerificationShard
from shared.model_card import ModelCard
from shared.plan import Variant, decode_variants
from shared.plan_file import PLAN as PLAN_NAME
from shared.plan_file import Plan, read_plan
from shared.runs import RunSettings
from shared.stores.records import Record

MAX_PREVIEWS = 8
LINKED = (
    "run.json",
    "model.json",
    "manifest.json",
    "plan.json",
    "sensitivity/*/results.json",
    "sensitivity/*/results.csv",
    "levels/*/levels.csv",
    "plans/*/plan.json",
    "plans/*/prediction.json",
    "verification/*/verification.json",
    "verification/*/winner.json",
)
"""The files that the page links to, if they are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """One prompt, as the original and some variants drew it."""

    prompt: str
    drawn: tuple[tuple[str, bytes], ...]
    """Name of the variant and PNG; the original first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A verification, with what was measured of each variant."""

    verdict: Verdict
    plan: Plan
    """What was to be proved."""
    shipped: Plan
    """What is to be shipped: the plan itself, or what won."""
    variants: tuple[Variant, ...]
    """Without the original."""
    errors: Mapping[str, float]
    """For each of them, the median over prompts of the relative error of the final latent."""
    pictures: tuple[Pictures, ...]
    finished_at: str
    """When the last prompt was drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """All that the report shows. Whatever is not there yet is empty."""

    run: RunSettings
    card: ModelCard | None = None
    sensitivities: tuple[Results, ...] = ()
    """The one with most measurements first."""
    plans: tuple[Plan, ...] = ()
    """The newest first."""
    predictions: tuple[Prediction, ...] = ()
    """Of the plan that is shown, and of uniform models."""
    proofs: tuple[Proof, ...] = ()
    """The newest first."""
    estimates: Estimates | None = None
    hosts: tuple[HostTimings, ...] = ()
    previews: tuple[tuple[str, bytes], ...] = ()
    """Prompt and PNG."""
    files: tuple[str, ...] = ()
    """Paths within the folder."""
    unreadable: tuple[str, ...] = ()
    """A line for each part that can't be shown."""

    @property
    def proof(self) -> Proof | None:
        """The newest proof."""
        return self.proofs[0] if self.proofs else None

    @property
    def plan(self) -> Plan | None:
        """What is to be shipped; without a proof the newest plan."""
        if self.proof:
            return self.proof.shipped
        return self.plans[0] if self.plans else None


class _Reader:
    """Reads what can be read, and notes what can't."""

    def __init__(self, folder: CalibFolder) -> None:
        self.folder = folder
        self.unreadable: list[str] = []

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BitfleetError, OSError) as error:
            self.unreadable.append(f"{what}: {error}")

    def sensitivities(self) -> list[Results]:
        found = []
        for subfolder in self.folder.sensitivities():
            if subfolder.results_path.is_file():
                with self.trying(f"sensitivity {subfolder.root.name}"):
                    found.append(decode_results(subfolder.results_path.read_bytes()))
        return sorted(found, key=lambda results: -len(results.measurements))

    def plans(self) -> list[Plan]:
        dated = []
        for path in self.folder.root.glob("plans/*/plan.json"):
            with self.trying(f"plan {path.parent.name}"):
                dated.append((-path.stat().st_mtime_ns, path.parent.name, read_plan(path)))
        return [plan for *_, plan in sorted(dated, key=lambda item: item[:2])]

    def proofs(self) -> list[Proof]:
        found = []
        for subfolder in self.folder.verifications.all():
            if (subfolder.root / WINNER).is_file():
                with self.trying(f"verification {subfolder.root.name}"):
                    found.append(_proof(subfolder))
        return sorted(found, key=lambda proof: (proof.finished_at, proof.plan.id), reverse=True)

    def hosts(self) -> tuple[HostTimings, ...]:
        kinds = (self.folder.weights, self.folder.levels, self.folder.confirms, self.folder.verifications)
        subfolders = [*self.folder.sensitivities(), *(one for kind in kinds for one in kind.all())]
        records: list[Record] = []
        for subfolder in (self.folder, *subfolders):
            with self.trying(f"records of {subfolder.root.name}"):
                records += subfolder.records.read().values()
        return host_timings(records)


def read_contents(folder: CalibFolder) -> Contents:
    """Return what a folder holds.

    Raises:
        InputError: it holds no run.
    """
    run, reader = folder.require_run(), _Reader(folder)
    card = None
    with reader.trying("model.json"):
        card = folder.read_model()
    plans, proofs = reader.plans(), reader.proofs()
    chosen = proofs[0].plan if proofs else plans[0] if plans else None
    predictions: Sequence[Prediction] = ()
    if chosen is not None:
        predictions = read_predictions(folder.plan_path(chosen.id).parent / PREDICTION)
    previews = [
        (prompt, path.read_bytes())
        for index, prompt in enumerate(run.prompts)
        if (path := folder.preview_path(index)).is_file()
    ]
    return Contents(
        run=run.settings,
        card=card,
        sensitivities=tuple(reader.sensitivities()),
        plans=tuple(plans),
        predictions=tuple(predictions),
        proofs=tuple(proofs),
        estimates=read_estimates(folder, chosen),
        hosts=reader.hosts(),
        previews=tuple(previews[:MAX_PREVIEWS]),
        files=tuple(
            path.relative_to(folder.root).as_posix()
            for pattern in LINKED
            for path in sorted(folder.root.glob(pattern))
        ),
        unreadable=tuple(reader.unreadable),
    )


def _proof(subfolder: KeptFolder[VerificationRequest]) -> Proof:
    request, known = subfolder.require_request(), subfolder.records.read()
    paths = [subfolder.shard_path(task.id) for task in request.tasks() if task.id in known]
    shards = [VerificationShard.from_bytes(path.read_bytes()) for path in paths if path.is_file()]
    errors = np.sqrt(np.median(measured(shards).relative_squared_error, axis=1)).tolist()
    variants = decode_variants((subfolder.root / VARIANTS).read_bytes())
    verdict = decode_verdict((subfolder.root / VERDICT).read_bytes())
    prompts = {image.image_index: image.prompt for image in request.prompts}
    shown = ("original", PLAN_NAME, verdict.winner, best_uniform(verdict))
    drawn = [
        Pictures(
            prompt=prompts[int(shard.image_index)],
            drawn=tuple(
                (name, png)
                for name, png in zip(request.names, shard.pictures(), strict=True)
                if png and name in shown
            ),
        )
        for shard in shards
    ]
    return Proof(
        verdict=verdict,
        plan=read_plan(subfolder.root / PLAN),
        shipped=read_plan(subfolder.root / WINNER),
        variants=variants[1:],
        errors={one.name: error for one, error in zip(variants[1:], errors[1:], strict=True)},
        pictures=tuple(pictures for pictures in drawn if len(pictures.drawn) > 1),
        finished_at=max((record.finished_at for record in known.values()), default=""),
    )


def best_uniform(verdict: Verdict) -> str | None:
    """Return the name of the uniform model with the largest mean PSNR; None if none was drawn."""
    uniform = [one for one in verdict.variants if one.name.startswith(UNIFORM)]
    return max(uniform, key=lambda one: one.psnr_db.mean).name if uniform else None
