"""Enqueue a verification: what is to be drawn, by which models, on which prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from producer.enqueue import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import RunFile
from producer.folder.verification_request import VerificationRequest
from producer.jobs.reconcile import Reconciled, reconcile
from producer.plan.offers import Offers, make_offers
from producer.plan.rivals import rivals_of
from producer.proof.looks import MAX_PROMPTS, next_look
from shared.errors import InputError, RunMismatchError
from shared.files import write_atomically
from shared.kinds.verification import VerificationSettings
from shared.kinds.weights import WeightsShard
from shared.model_card import ModelCard
from shared.models import model_spec, sampler_shift
from shared.plan import Variant, encode_variants, variants_digest
from shared.plan_file import ORIGINAL, Plan, encode_plan
from shared.runs import RunSettings

MAX_PLANS = 3
"""So many candidates may be compared on the choosing prompts. More would be choosing by chance."""


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
    fleet: Fleet,
) -> tuple[VerificationRequest, Reconciled]:
    """Enqueue the proof of a plan; of several plans, first the choice of the best.

    Args:
        folder: the calibration folder of the run that the plans were made in.
        plans: one to MAX_PLANS.
        weights: by Plan.weights_id, the weight errors from which rivals are made.
        options: what to draw.
        fleet: Redis and the store.

    Raises:
        InputError: too many plans, or prompts that don't fit each other, or options that don't fit the model.
        RunMismatchError: a plan of another run or model.
    """
    run, card = folder.require_run(), folder.read_model()
    if card is None:
        raise InputError(f"{folder.root} holds no model.json yet; run `producer collect` first")
    plans = list({plan.id: plan for plan in plans}.values())
    _check_plans(plans, run, card)
    drawn = _drawn_run(run.settings, options)
    first_look = next_look(0, min(options.max_prompts, len(plans[0].prompts.proof)))
    proofs = [
        _proof(plan, card, weights[plan.weights_id], run, drawn, options, first_look if len(plans) == 1 else 0)
        for plan in plans
    ]
    requests = [_write(folder, request, variants, plan) for plan, (request, variants) in zip(plans, proofs, strict=True)]
    if len(plans) > 1:
        request, variants = _choice(plans, card, weights, run, drawn, [one.settings.id for one in requests])
        requests.append(_write(folder, request, variants, plans[0]))
    asked = requests[-1]
    subfolder = folder.verification(asked.settings.id)
    fleet.store.put_blob(asked.settings.variants_sha256, subfolder.variants_path.read_bytes())
    done = frozenset(subfolder.records.read())
    return asked, reconcile(
        asked.tasks(), done, connection=fleet.connection, store=fleet.store, retry_failed=True
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
        _check_disjoint(plans)


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


def _proof(
    plan: Plan,
    card: ModelCard,
    weights: WeightsShard,
    run: RunFile,
    drawn: RunSettings,
    options: VerificationOptions,
    wanted: int,
) -> tuple[VerificationRequest, tuple[Variant, ...]]:
    rivals = rivals_of(plan, card, weights)
    # The first variants are shown: what anybody could make comes first.
    every = {variant.name: variant for variant in (*rivals.uniform, *rivals.variants())}
    kept = rivals.uniform if options.rivals == "uniform" else tuple(every.values())
    if rivals.plain is not None and rivals.plain.name not in {variant.name for variant in kept}:
        kept = (*kept, rivals.plain)
    variants = (ORIGINAL, plan.variant, *kept)
    offers = make_offers(card, weights)
    prompts = plan.prompts.proof[: options.max_prompts]
    request = VerificationRequest(
        settings=_settings(run, drawn, variants),
        run=drawn,
        store_id=run.store_id,
        purpose="proof",
        plan_id=plan.id,
        prompts=prompts,
        wanted=wanted,
        names=tuple(variant.name for variant in variants),
        stored_bytes=_sizes(offers, variants),
    )
    return request, variants


def _choice(
    plans: Sequence[Plan],
    card: ModelCard,
    weights: Mapping[str, WeightsShard],
    run: RunFile,
    drawn: RunSettings,
    proofs: Sequence[str],
) -> tuple[VerificationRequest, tuple[Variant, ...]]:
    variants = (ORIGINAL, *(Variant(name=f"plan {plan.id}", layers=plan.layers) for plan in plans))
    prompts = plans[0].prompts.choosing
    request = VerificationRequest(
        settings=_settings(run, drawn, variants),
        run=drawn,
        store_id=run.store_id,
        purpose="choosing",
        plan_id=plans[0].id,
        prompts=prompts,
        wanted=len(prompts),
        names=tuple(variant.name for variant in variants),
        stored_bytes=_sizes(make_offers(card, weights[plans[0].weights_id]), variants),
        proofs=tuple(proofs),
    )
    return request, variants


def _settings(run: RunFile, drawn: RunSettings, variants: tuple[Variant, ...]) -> VerificationSettings:
    return VerificationSettings(
        run_id=run.settings.id,
        variants_sha256=variants_digest(encode_variants(variants)),
        num_steps=drawn.num_steps,
        cfg_weight=drawn.cfg_weight,
        image_size=drawn.image_size,
    )


def _sizes(offers: Offers, variants: Sequence[Variant]) -> tuple[int, ...]:
    return tuple(offers.variant_bytes(variant.layers) for variant in variants)


def _write(
    folder: CalibFolder, request: VerificationRequest, variants: tuple[Variant, ...], plan: Plan
) -> VerificationRequest:
    """Write a request, its variants and its plan; return the request, with what an older one wanted."""
    subfolder = folder.verification(request.settings.id)
    old = subfolder.read_request()
    if old is not None:
        shorter, longer = sorted((old.prompts, request.prompts), key=len)
        if longer[: len(shorter)] != shorter:
            raise InputError(
                f"verification {request.settings.id} draws other prompts; make the plan with the same prompt "
                "file, or use another --calib-dir"
            )
        # Prompts that were wanted before are still wanted.
        request = replace(request, prompts=longer, wanted=max(old.wanted, request.wanted))
    write_atomically(subfolder.variants_path, encode_variants(variants))
    write_atomically(subfolder.plan_path, encode_plan(plan))
    subfolder.write_request(request)
    return request
