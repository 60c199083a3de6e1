"""Enqueue a verification: what is to be drawn, by which models, on which prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from humanfriendly import format_size
from msgspec.structs import replace

from producer.cost import Gate, Wish
from producer.enqueue import beyond_the_gate, show_cost, turn
from producer.fleet import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import RunFile
from producer.folder.verification_request import PLAN, VARIANTS, VerificationRequest
from producer.jobs.reconcile import Reconciled, reconcile
from producer.plan.offers import make_offers
from producer.plan.rivals import rivals_of
from producer.proof.looks import MAX_PROMPTS, next_look
from shared.errors import InputError, RunMismatchError
from shared.files import write_atomically
from shared.kinds.verification import VerificationSettings
from shared.kinds.weights import WeightsShard
from shared.model_card import ModelCard
from shared.models import model_spec, sampler_shift
from shared.plan import Variant, encode_variants, variants_digest
from shared.plan_file import ORIGINAL, Plan, PlanPrompt, encode_plan
from shared.runs import RunSettings

MAX_PLANS = 3
"""So many candidates may be compared on the choosing prompts. More would be choosing by chance."""


SAME_SIZE = 0.01
"""Sizes that differ by less are one size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationOptions:
    """The options of a verification."""

    num_steps: int | None = None
    cfg_weight: float | None = None
    image_size: int | None = None
    """None for the run's own. The same holds for steps and cfg_weight."""
    max_prompts: int = MAX_PROMPTS
    rivals: Literal["all", "uniform"] = "all"


def enqueue_verification(
    folder: CalibFolder,
    plans: Sequence[Plan],
    weights: Mapping[str, WeightsShard],
    options: VerificationOptions,
    fleet: Fleet | None,
    gate: Gate | None = None,
) -> tuple[VerificationRequest, Reconciled]:
    """Enqueue the proof of a plan; of several plans, first the choice of the best.

    Args:
        folder: the calibration folder of the run that the plans were made in.
        plans: one to MAX_PLANS.
        weights: by Plan.weights_id, the weight errors from which rivals are made.
        options: what to draw.
        fleet: Redis and the store.
        gate: what the tasks pass before anything is written.

    Raises:
        InputError: too many plans, or prompts that don't fit each other, or options that don't fit the model.
        RunMismatchError: a plan of another run or model.
    """
    run, card = folder.require_run(), folder.require_model()
    plans = list({plan.id: plan for plan in plans}.values())
    _check_plans(plans, run, card)
    maker = _Maker(
        run=run, card=card, weights=weights, drawn=_drawn_run(run.settings, options), options=options
    )
    with turn(folder, "enqueue-verification", gate):
        return _enqueue(folder, plans, maker, fleet, gate)


def _enqueue(
    folder: CalibFolder, plans: Sequence[Plan], maker: "_Maker", fleet: Fleet | None, gate: Gate | None
) -> tuple[VerificationRequest, Reconciled]:
    # Where a plan is to be chosen first, its proof waits.
    asked = [_merged(folder, *maker.proof(plan, waits=len(plans) > 1)) for plan in plans]
    if len(plans) > 1:
        asked.append(_merged(folder, *maker.choice(plans, [one.settings.id for one, _ in asked])))
    request, variants = asked[-1]
    subfolder = folder.verifications.open(request.settings.id)
    if gate:
        wish = Wish(
            kind="verification",
            run=request.run,
            tasks=request.tasks(),
            done=subfolder.records.read(),
            variants=len(variants),
        )
        show_cost(gate, folder, fleet, wish)
    fleet = beyond_the_gate(fleet)
    for plan, one in zip([*plans, plans[0]], asked, strict=False):
        _write(folder, plan, *one)
    fleet.store.put_blob(request.settings.variants_sha256, (subfolder.root / VARIANTS).read_bytes())
    tasks, done = request.tasks(), frozenset(subfolder.records.read())
    folder.cancelled.remove(task.id for task in tasks)
    return request, reconcile(
        tasks,
        done,
        connection=fleet.connection,
        store=fleet.store,
        retry_failed=True,
        folder=folder.root,
    )


def _check_plans(plans: Sequence[Plan], run: RunFile, card: ModelCard) -> None:
    if len(plans) > MAX_PLANS:
        raise InputError(
            f"{len(plans)} plans are too many to choose from: at most {MAX_PLANS}, or chance would choose; "
            "leave some out"
        )
    for plan in plans:
        plan.prompts.check()
        if plan.run != run.settings or plan.fingerprint != card.fingerprint:
            raise RunMismatchError(
                f"plan {plan.id} was made for run {plan.run.id} of {plan.run.model}, this folder holds run "
                f"{run.settings.id} of {run.settings.model}; name its folder with --calib-dir"
            )
        if not plan.prompts.proof:
            raise InputError(f"plan {plan.id} has no prompts for the proof; make it with more prompts")
        if plan.prompts.proof != plans[0].prompts.proof or plan.prompts.choosing != plans[0].prompts.choosing:
            raise InputError(
                f"plans {plans[0].id} and {plan.id} have different prompts for choosing or proof; make them "
                "with the same prompt file and numbers"
            )
    if len(plans) > 1:
        _check_sizes(plans)
        _check_disjoint(plans)


def _check_sizes(plans: Sequence[Plan]) -> None:
    """Check that the plans were made for one size: a larger one would win whatever it is worth."""
    smallest, largest = (pick(plan.budget_bytes for plan in plans) for pick in (min, max))
    if largest > (1 + SAME_SIZE) * smallest:
        raise InputError(
            f"these plans were made for {format_size(smallest)} to {format_size(largest)}, and the largest "
            "would be chosen for its size; verify each by itself, or make them for one size"
        )


def _check_disjoint(plans: Sequence[Plan]) -> None:
    """Check that no plan was made on what another one is judged on."""
    if not plans[0].prompts.choosing:
        raise InputError("these plans have no prompts for choosing; make them with some, or verify one only")
    for plan in plans:
        for other in plans:
            replace(plan.prompts, scores=other.prompts.scores, prediction=other.prompts.prediction).check()


def _drawn_run(run: RunSettings, options: VerificationOptions) -> RunSettings:
    """Return the run's settings with those that the options replace."""
    spec = model_spec(run.model)
    if spec.family == "flux" and options.cfg_weight:
        raise InputError(f"{run.model} is distilled and takes no --cfg-weight; leave it out")
    size = options.image_size or run.image_size
    if size % 16:
        raise InputError(f"--image-size {size} is no multiple of 16; use {max(16, size - size % 16)}")
    spec.check(image_size=size, use_t5=run.use_t5)
    return replace(
        run,
        num_steps=options.num_steps or run.num_steps,
        cfg_weight=run.cfg_weight if options.cfg_weight is None else options.cfg_weight,
        image_size=size,
        shift=run.shift if size == run.image_size else sampler_shift(spec, size, run.reference),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maker:
    """Makes requests with their variants."""

    run: RunFile
    card: ModelCard
    weights: Mapping[str, WeightsShard]
    drawn: RunSettings
    options: VerificationOptions

    def proof(self, plan: Plan, *, waits: bool) -> tuple[VerificationRequest, tuple[Variant, ...]]:
        rivals = rivals_of(plan, self.card, self.weights[plan.weights_id])
        # The first variants are shown: what anybody could make comes first.
        kept = {variant.name: variant for variant in rivals.uniform}
        if rivals.plain is not None:
            kept[rivals.plain.name] = rivals.plain
        if self.options.rivals == "all":
            kept |= {variant.name: variant for variant in rivals.others}
        prompts = plan.prompts.proof[: self.options.max_prompts]
        return self._request(
            (ORIGINAL, plan.variant, *kept.values()),
            plan,
            prompts,
            purpose="proof",
            wanted=0 if waits else next_look(0, len(prompts)),
        )

    def choice(
        self, plans: Sequence[Plan], proofs: Sequence[str]
    ) -> tuple[VerificationRequest, tuple[Variant, ...]]:
        candidates = [Variant(name=f"plan {plan.id}", layers=plan.layers) for plan in plans]
        prompts = plans[0].prompts.choosing
        return self._request(
            (ORIGINAL, *candidates),
            plans[0],
            prompts,
            purpose="choosing",
            wanted=len(prompts),
            proofs=tuple(proofs),
        )

    def _request(
        self, variants: tuple[Variant, ...], plan: Plan, prompts: tuple[PlanPrompt, ...], **more: Any
    ) -> tuple[VerificationRequest, tuple[Variant, ...]]:
        offers = make_offers(self.card, self.weights[plan.weights_id])
        settings = VerificationSettings(
            run_id=self.run.settings.id,
            variants_sha256=variants_digest(encode_variants(variants)),
            num_steps=self.drawn.num_steps,
            cfg_weight=self.drawn.cfg_weight,
            image_size=self.drawn.image_size,
        )
        request = VerificationRequest(
            settings=settings,
            run=self.drawn,
            store_id=self.run.store_id,
            plan_id=plan.id,
            prompts=prompts,
            names=tuple(variant.name for variant in variants),
            stored_bytes=tuple(offers.variant_bytes(variant.layers) for variant in variants),
            **more,
        )
        return request, variants


def _merged(
    folder: CalibFolder, request: VerificationRequest, variants: tuple[Variant, ...]
) -> tuple[VerificationRequest, tuple[Variant, ...]]:
    """Return a request, with what an older one wanted, and its variants."""
    old = folder.verifications.open(request.settings.id).read_request()
    if old is not None:
        shorter, longer = sorted((old.prompts, request.prompts), key=len)
        if longer[: len(shorter)] != shorter:
            raise InputError(
                f"verification {request.settings.id} draws other prompts; make the plan with the same prompt "
                "file, or use another --calib-dir"
            )
        # Prompts that were wanted before are still wanted.
        request = replace(request, prompts=longer, wanted=max(old.wanted, request.wanted))
    return request, variants


def _write(
    folder: CalibFolder, plan: Plan, request: VerificationRequest, variants: tuple[Variant, ...]
) -> None:
    """Write a request, its variants and its plan."""
    subfolder = folder.verifications.open(request.settings.id)
    write_atomically(subfolder.root / VARIANTS, encode_variants(variants))
    write_atomically(subfolder.root / PLAN, encode_plan(plan))
    subfolder.write_request(request)
