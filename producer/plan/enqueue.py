"""Enqueue what plans are made of: weight errors and levels; and what predicts their errors: confirmations."""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from producer.cost import Gate, Wish
from producer.enqueue import beyond_the_gate, show_cost, turn
from producer.fleet import Fleet
from producer.folder.calib_folder import CalibFolder
from producer.folder.kept_folder import ConfirmRequest, LevelsRequest, WeightsRequest
from producer.folder.run_file import RunFile
from producer.jobs.reconcile import Reconciled, reconcile
from producer.kinds.confirm import VARIANTS, confirm_tasks
from producer.kinds.levels import levels_tasks
from producer.kinds.weights import read_weights, weights_task
from producer.plan.offers import make_offers
from producer.plan.prompt_sets import PromptFile, images_of
from producer.plan.rivals import uniform_that_fit
from shared.choices import DEFAULT_GROUP_SIZE
from shared.errors import InputError
from shared.files import write_atomically
from shared.identity import digest_of
from shared.kinds.confirm import ConfirmSettings
from shared.kinds.kind import Task
from shared.kinds.levels import LevelsSettings
from shared.plan import Choice, Variant, encode_variants, variants_digest
from shared.plan_file import Plan, PlanPrompt

PLAIN_BITS = (2, 3, 4)
"""Bit widths, in groups of 64, of the candidates whose products with the gradient are measured, too."""
MAX_PLANS = 4


def enqueue_levels(
    folder: CalibFolder,
    fleet: Fleet | None,
    *,
    candidates: Sequence[Choice],
    images: int,
    file: PromptFile,
    gate: Gate | None = None,
) -> tuple[LevelsRequest | None, str, list[Reconciled]]:
    """Enqueue the weight errors of all candidates, and the levels of so many images.

    Images that were wanted before, with the same candidates, are still wanted.

    Returns:
        The request (None without images), the id of the weight errors, and what became of the tasks.

    Raises:
        InputError: there are too few prompts.
    """
    with turn(folder, "enqueue-levels", gate):
        return _enqueue_levels(folder, fleet, candidates, images, file, gate)


def _enqueue_levels(
    folder: CalibFolder,
    fleet: Fleet | None,
    candidates: Sequence[Choice],
    images: int,
    file: PromptFile,
    gate: Gate | None,
) -> tuple[LevelsRequest | None, str, list[Reconciled]]:
    run = folder.require_run()
    weights = WeightsRequest(candidates=tuple(sorted(candidates)))
    weights_id = digest_of(weights.candidates)[:12]
    prompts = images_of(run, file, images) if images else ()
    request = _levels_request(folder, run, weights, weights_id, prompts) if prompts else None
    if gate:
        show_cost(gate, folder, fleet, *_wishes(folder, run, weights, weights_id, request))
    fleet = beyond_the_gate(fleet)
    folder.weights.open(weights_id).write_request(weights)
    reconciled = [
        _reconciled(
            folder, [weights_task(weights, run)], folder.weights.open(weights_id).records.read(), fleet
        )
    ]
    if request is None:
        return None, weights_id, reconciled
    subfolder = folder.levels.open(request.settings.id)
    subfolder.write_request(request)
    reconciled.append(_reconciled(folder, levels_tasks(request, run), subfolder.records.read(), fleet))
    return request, weights_id, reconciled


def _wishes(
    folder: CalibFolder, run: RunFile, weights: WeightsRequest, weights_id: str, levels: LevelsRequest | None
) -> Iterator[Wish]:
    yield Wish(
        kind="weights",
        run=run.settings,
        tasks=[weights_task(weights, run)],
        done=folder.weights.open(weights_id).records.read(),
        candidates=weights.candidates,
    )
    if levels is not None:
        yield Wish(
            kind="levels",
            run=run.settings,
            tasks=levels_tasks(levels, run),
            done=folder.levels.open(levels.settings.id).records.read(),
            candidates=levels.settings.candidates,
        )


def _levels_request(
    folder: CalibFolder,
    run: RunFile,
    weights: WeightsRequest,
    weights_id: str,
    prompts: tuple[PlanPrompt, ...],
) -> LevelsRequest:
    plain = tuple(
        choice
        for choice in weights.candidates
        if choice.group_size == DEFAULT_GROUP_SIZE and choice.bits in PLAIN_BITS
    )
    settings = LevelsSettings(run_id=run.settings.id, candidates=plain)
    old = folder.levels.open(settings.id).read_request()
    return LevelsRequest(
        settings=settings,
        prompts=_with_earlier(prompts, old.prompts if old else (), f"levels {settings.id}"),
        weights_id=weights_id,
    )


def enqueue_confirm(
    folder: CalibFolder, fleet: Fleet | None, plans: Sequence[Plan], gate: Gate | None = None
) -> tuple[ConfirmRequest, Reconciled]:
    """Enqueue the predicted errors of some plans, and of the uniform models that fit the largest budget.

    Raises:
        InputError: there are too many plans, they are of another run, or have other prompts for this.
    """
    with turn(folder, "enqueue-confirm", gate):
        return _enqueue_confirm(folder, fleet, plans, gate)


def _enqueue_confirm(
    folder: CalibFolder, fleet: Fleet | None, plans: Sequence[Plan], gate: Gate | None
) -> tuple[ConfirmRequest, Reconciled]:
    run, card = folder.require_run(), folder.require_model()
    if not 1 <= len(plans) <= MAX_PLANS:
        raise InputError(f"{len(plans)} plans; give one to {MAX_PLANS}")
    first = plans[0]
    for plan in plans:
        if plan.run != run.settings or plan.fingerprint != card.fingerprint:
            raise InputError(f"plan {plan.id} is of another run or model than {folder.root} holds")
        if plan.prompts.prediction != first.prompts.prediction or not plan.prompts.prediction:
            raise InputError(
                f"plans {first.id} and {plan.id} differ in the prompts for the prediction, or have none; "
                "make them with the same --prompt-csv, --choosing and --prediction"
            )
    variants = confirm_variants(folder, plans)
    data = encode_variants(variants)
    settings = ConfirmSettings(run_id=run.settings.id, variants_sha256=variants_digest(data))
    subfolder = folder.confirms.open(settings.id)
    old = subfolder.read_request()
    request = ConfirmRequest(
        settings=settings,
        prompts=_with_earlier(first.prompts.prediction, old.prompts if old else (), f"confirm {settings.id}"),
        names=tuple(variant.name for variant in variants),
        plans=tuple(plan.id for plan in plans),
    )
    if gate:
        wish = Wish(
            kind="confirm",
            run=run.settings,
            tasks=confirm_tasks(request, run),
            done=subfolder.records.read(),
            variants=len(variants),
        )
        show_cost(gate, folder, fleet, wish)
    fleet = beyond_the_gate(fleet)
    write_atomically(subfolder.root / VARIANTS, data)
    subfolder.write_request(request)
    fleet.store.put_blob(settings.variants_sha256, data)
    return request, _reconciled(folder, confirm_tasks(request, run), subfolder.records.read(), fleet)


def _with_earlier(
    prompts: tuple[PlanPrompt, ...], earlier: tuple[PlanPrompt, ...], what: str
) -> tuple[PlanPrompt, ...]:
    """Return the longer list of images; the other must be its beginning.

    Raises:
        InputError: it is not.
    """
    if any(before != now for before, now in zip(earlier, prompts, strict=False)):
        raise InputError(
            f"{what} was asked for with other prompts; give the same --prompt-csv (and for plans the same "
            "--choosing), or delete its folder"
        )
    return max(prompts, earlier, key=len)


def confirm_variants(folder: CalibFolder, plans: Sequence[Plan]) -> tuple[Variant, ...]:
    """Return the plans' variants, then the uniform ones that fit the largest plan's budget."""
    card, largest = folder.require_model(), max(plans, key=lambda plan: plan.budget_bytes)
    offers = make_offers(card, read_weights(folder, largest.weights_id))
    if len(plans) == 1:
        chosen = [plans[0].variant]
    else:
        chosen = [msgspec.structs.replace(plan.variant, name=f"plan {plan.id}") for plan in plans]
    return (*chosen, *uniform_that_fit(offers, largest.budget_bytes).values())


def _reconciled(
    folder: CalibFolder, tasks: Sequence[Task], done: Mapping[str, object], fleet: Fleet
) -> Reconciled:
    folder.cancelled.remove(task.id for task in tasks)
    return reconcile(
        tasks,
        frozenset(done),
        connection=fleet.connection,
        store=fleet.store,
        retry_failed=True,
        folder=folder.root,
    )
