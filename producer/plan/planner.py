"""Make plans of what a folder holds: weight errors and scores, for one target or several."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from producer.folder.calib_folder import CalibFolder
from producer.folder.shard_folder import ShardFolder
from producer.kinds.levels import read_levels
from producer.kinds.weights import read_weights
from producer.plan.keep import parse_keep
from producer.plan.offers import Offers, candidates_of, make_offers
from producer.plan.prompt_sets import CHOOSING, PREDICTION, PROOF, PromptFile, prompt_sets
from producer.plan.scores import EVENLY, LayerScores, Method, Thirds, scores_of
from producer.plan.solver import Limit, solve
from producer.plan.step_time import Times, seconds_of
from producer.plan.targets import Target, parameters_of
from producer.plan.velocity_scores import velocity_scores
from producer.results.results import decode_results
from shared.errors import InputError
from shared.kinds.weights import WeightsShard
from shared.metrics import Floats
from shared.model_card import ModelCard
from shared.plan import Choice
from shared.plan_file import Plan, PlanPrompt, PromptSets, Scores, numbered
from shared.plan_file import Target as ScoreTarget

MIN_IMAGES_SHARE = 0.5
"""So much of the wanted levels must be collected before a plan is made of them."""

AnyFolder = TypeVar("AnyFolder", bound=ShardFolder)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """What scores are made of, and how."""

    source: str | None = None
    """Id of the levels or of the sensitivity run, where the folder holds several."""
    levels_by: Method | None = None
    """How levels are taken; None takes what is better for that many images."""
    thirds: Thirds = EVENLY


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions(ScoreOptions):
    """The options of `producer plan`."""

    targets: Sequence[Target]
    keep: Sequence[str] = ()
    scores: ScoreTarget = "image"
    prompts: PromptFile
    choosing: int = CHOOSING
    prediction: int = PREDICTION
    proof: int = PROOF
    max_step_time: float | None = None
    """In seconds."""
    step_times: Times | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What plans are made of."""

    card: ModelCard
    weights: WeightsShard
    weights_id: str
    scores: LayerScores
    about: Scores
    images: tuple[PlanPrompt, ...]
    """On which the scores were measured."""


def make_plans(folder: CalibFolder, options: PlanOptions) -> list[Plan]:
    """Return one plan for each target.

    Raises:
        InputError: something is not collected yet, contradicts, or can't be reached.
    """
    run = folder.require_run()
    material = _velocity(folder, options) if options.scores == "velocity" else image_material(folder, options)
    offers, scores = scored_offers(material, options.keep)
    sets = prompt_sets(
        material.images,
        options.prompts,
        run.settings.seed,
        choosing=options.choosing,
        prediction=options.prediction,
        proof=options.proof,
    )
    return [_plan(folder, material, offers, scores, sets, target, options) for target in options.targets]


def scored_offers(material: Material, keep: Sequence[str]) -> tuple[Offers, Floats]:
    """Return what each row can be, and its scores (R, K). What has no score is not offered."""
    offers = make_offers(
        material.card,
        material.weights,
        [parse_keep(text) for text in keep],
        material.scores.candidates,
    )
    unknown = offers.by_row(~np.column_stack([material.scores.known, np.ones(len(offers.layers), bool)]))
    allowed = offers.allowed & (unknown == 0)
    if not allowed.any(axis=1).all():
        row = int(np.flatnonzero(~allowed.any(axis=1))[0])
        path = offers.layers[int(np.flatnonzero(offers.row_of == row)[0])].path
        raise InputError(f"{path} has no score for what --keep wants; change that, or measure it")
    by_layer = np.column_stack([material.scores.error, np.zeros(len(offers.layers))])
    return replace(offers, allowed=allowed), offers.by_row(by_layer)


def _plan(
    folder: CalibFolder,
    material: Material,
    offers: Offers,
    scores: Floats,
    sets: PromptSets,
    target: Target,
    options: PlanOptions,
) -> Plan:
    budget = target.budget(offers, scores)
    limit = Limit(size=offers.stored_bytes.astype(np.float64), most=budget - offers.other_bytes)
    text, allowed, extra = target.text, offers.allowed, None
    if options.max_step_time is not None:
        seconds = seconds_of(offers, options.step_times or {})
        allowed = allowed & np.isfinite(seconds)
        extra = Limit(size=np.where(allowed, seconds, 0.0), most=options.max_step_time)
        text += f" --max-step-time {options.max_step_time:g}"
        _check_time(allowed, seconds, options.max_step_time)
    try:
        solution = solve(scores, allowed, limit, extra)
    except ValueError:
        raise InputError(f"{text}: nothing on offer is both as small and as fast; ask for less") from None
    layers = offers.choices(solution.chosen)
    return Plan(
        run=folder.require_run().settings,
        fingerprint=material.card.fingerprint,
        layers=layers,
        kept=tuple(layer.path for layer in offers.layers if layer.path not in layers),
        stored_bytes=offers.total_bytes(solution.chosen),
        budget_bytes=budget,
        parameters=parameters_of(offers),
        target=text,
        keep=tuple(options.keep),
        candidates=material.scores.candidates,
        weights_id=material.weights_id,
        scores=material.about,
        score=solution.value,
        gap=solution.gap,
        prompts=sets,
    )


def _check_time(
    allowed: np.ndarray[tuple[int, int], np.dtype[np.bool_]], seconds: Floats, most: float
) -> None:
    if not allowed.any(axis=1).all():
        raise InputError("--step-times lacks times for all that some layers can be; add lines to the table")
    least = float(np.where(allowed, seconds, np.inf).min(axis=1).sum())
    if most < least:
        raise InputError(
            f"--max-step-time {most:g} can't be reached: the fastest of what is offered takes {least:.3g} s"
        )


def _named(found: dict[str, AnyFolder], name: str | None, what: str, command: str) -> AnyFolder:
    """Return the folder of that name, or the only one."""
    if not found:
        raise InputError(f"there is no {what} in this folder yet; ask for one with {command}")
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name in found:
        return found[name]
    known = ", ".join(found)
    raise InputError(f"name the {what} to use with --scores; there is {known}")


def image_material(folder: CalibFolder, options: ScoreOptions) -> Material:
    """Return weight errors and scores by levels.

    Raises:
        InputError: there are none yet, or several and none is named.
    """
    card = folder.require_model()
    found = {subfolder.root.name: subfolder for subfolder in folder.levels.all()}
    subfolder = _named(found, options.source, "levels", "`producer enqueue-levels`")
    request = subfolder.require_request()
    weights = read_weights(folder, request.weights_id)
    done = read_levels(folder, subfolder)
    if not done or len(done) < MIN_IMAGES_SHARE * len(request.prompts):
        raise InputError(
            f"{len(done)} of {len(request.prompts)} images of levels {request.settings.id} are collected; "
            "run `producer collect --wait`, with a worker"
        )
    scores = scores_of(
        [shard for _, shard in done],
        request.settings.candidates,
        weights,
        thirds=options.thirds,
        method=options.levels_by,
    )
    return Material(
        card=card,
        weights=weights,
        weights_id=request.weights_id,
        scores=scores,
        about=Scores(
            target="image",
            source=request.settings.id,
            images=len(done),
            level=scores.method,
            thirds=options.thirds,
        ),
        # What is still to come was not looked at, but will be.
        images=request.prompts,
    )


def _velocity(folder: CalibFolder, options: PlanOptions) -> Material:
    """Read weight errors and the results of exact or sketched measurements."""
    card, run = folder.require_model(), folder.require_run()
    found = {subfolder.root.name: subfolder for subfolder in folder.sensitivities()}
    subfolder = _named(found, options.source, "sensitivity", "`producer enqueue-sensitivity`")
    if not subfolder.results_path.is_file():
        raise InputError(f"{subfolder.results_path} is missing; run `producer collect`")
    results = decode_results(subfolder.results_path.read_bytes())
    scores = velocity_scores(results, card, thirds=options.thirds)
    found_weights = _weights_with(folder, scores.candidates)
    if found_weights is None:
        bits = ",".join(str(choice.bits) for choice in scores.candidates)
        raise InputError(
            "the weight errors of what was measured are missing; run `producer enqueue-levels --images 0 "
            f"--bits {bits} --group-sizes {scores.candidates[0].group_size}`, then `producer collect --wait`"
        )
    weights_id, weights = found_weights
    images = min(subfolder.require_request().max_images, len(run.prompts))
    return Material(
        card=card,
        weights=weights,
        weights_id=weights_id,
        scores=scores,
        about=Scores(
            target="velocity",
            source=results.sensitivity_id,
            images=results.images,
            level="measured",
            thirds=options.thirds,
        ),
        images=numbered(run.prompts, range(images), run.settings.seed),
    )


def _weights_with(folder: CalibFolder, candidates: Sequence[Choice]) -> tuple[str, WeightsShard] | None:
    """Return collected weight errors of all these candidates, with their id; None if there are none."""
    for weights_id in (subfolder.root.name for subfolder in folder.weights.all()):
        with suppress(InputError):
            weights = read_weights(folder, weights_id)
            if set(candidates) <= set(candidates_of(weights)):
                return weights_id, weights
    return None
