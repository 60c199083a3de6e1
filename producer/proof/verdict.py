"""The verdict of a proof: verification.json. The same shards always give the same verdict."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct

from producer.folder.verification_request import VerificationRequest
from producer.plan.prediction import Prediction, another_picture
from producer.proof.looks import Claim, claims, interval, level_at, p_value
from producer.proof.measured import Measured
from shared.decoding import decode
from shared.errors import InputError
from shared.kinds.verification import VerificationSettings
from shared.metrics import MAX_PSNR_DB, Bucket, Floats
from shared.plan_file import PlanPrompt
from shared.runs import RunSettings

FORMAT = 1
"""Increased when the meaning of a field changes."""

FLOOR_MARGIN_DB = 3.0
"""Nothing is claimed of what is nearer than this to the noise floor."""
WORST_PROMPTS = 3
"""So many are named."""
UNIFORM = "uniform "
"""How the names of the models begin that anybody could make without a plan."""

ClaimText = Literal["better", "worse", "not shown", "within noise"]


class Spread(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How values spread over prompts."""

    mean: float
    median: float
    tenth: float
    """The 10th percentile: one prompt in ten is worse."""
    worst: float


class PredictedError(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The prediction of a variant, made on other prompts, beside what was measured."""

    median_db: float
    """Median over images of ||x_N||^2 by the squared error, in dB, as predicted."""
    low_db: float
    high_db: float
    """Ends of the prediction's interval."""
    measured_db: float
    """The same median as it was measured."""
    another_picture: float
    """Share of prompts whose measured squared error is over four times the predicted."""


class VariantResult(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One variant against the original, over all prompts."""

    name: str
    stored_bytes: int
    psnr_db: Spread
    """Of final latents; 100 where they are equal."""
    image_psnr_db: Spread | None
    """Of decoded pictures; None if there are none. The same holds for ssim."""
    ssim: Spread | None
    lpips: Spread | None
    """Learned perceptual distance; worst and tenth are the large ones. None where it was not measured."""
    velocity_error: dict[Bucket, float]
    """Relative error of the guided velocity along the way, in each third of the steps."""
    overflows: int
    """On so many prompts its output was not finite: they count with a PSNR of 0."""
    within_noise: bool
    """Its mean PSNR is less than FLOOR_MARGIN_DB below the noise floor."""
    predicted: PredictedError | None


class Comparison(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The plan against one rival: PSNR of the plan less PSNR of the rival, prompt by prompt."""

    rival: str
    gain_db: Spread
    low_db: float | None
    high_db: float | None
    """Ends of the interval of the mean at the level of the look; None with too few prompts."""
    p_value: float
    claim: ClaimText
    claimed_at: int | None
    """Number of prompts at the look that showed it."""


class WorstPrompt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt on which what is to be shipped is farthest from the original."""

    prompt: str
    seed: int
    psnr_db: float


class Verdict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a proof says."""

    format: int = FORMAT
    verification_id: str
    purpose: Literal["choosing", "proof"]
    plan_id: str
    run: RunSettings
    verification: VerificationSettings
    complete: bool
    """Whether no further prompt is to be drawn."""
    prompts: int
    most: int
    """At most so many prompts would be drawn."""
    level: float
    """Of the last look; 0 before the first, when nothing can be claimed."""
    floor_db: float | None
    """PSNR of the original against itself with its rows swapped; 100 if it is equal, None if not measured."""
    variants: tuple[VariantResult, ...]
    """The plan, then its rivals; all candidates where a plan is chosen."""
    comparisons: tuple[Comparison, ...]
    winner: str
    """Name of what is to be shipped."""
    reason: str
    """Why, in one sentence."""
    worst_prompts: tuple[WorstPrompt, ...] = ()
    """Of the winner, the worst first."""

    @property
    def floor_text(self) -> str:
        """The noise floor, to be printed."""
        if self.floor_db is None:
            return "not measured"
        return "none" if self.floor_db >= MAX_PSNR_DB else f"{self.floor_db:.1f} dB"


def judge(
    found: Measured,
    request: VerificationRequest,
    *,
    complete: bool,
    predictions: Mapping[str, Prediction],
    images: Sequence[PlanPrompt] = (),
) -> Verdict:
    """Return the verdict.

    Args:
        found: what was measured on the request's prompts, or on the first of them.
        request: what was asked for. Of several candidates the best is named, and nothing is claimed.
        complete: whether no further prompt is to be drawn.
        predictions: by name of the variant.
        images: the prompts that were measured, in their order; without them the worst are not named.
    """
    names = request.names
    if request.purpose == "choosing":
        comparisons: list[Comparison] = []
        winner = names[found.best_of(range(1, len(names)))]
        reason = "it has the largest mean PSNR on the prompts for choosing"
    else:
        comparisons = compare(found, names, len(request.prompts))
        winner, reason = choose_winner(found, names, comparisons)
    return Verdict(
        verification_id=request.settings.id,
        purpose=request.purpose,
        plan_id=request.plan_id,
        run=request.run,
        verification=request.settings,
        complete=complete,
        prompts=found.prompts,
        most=len(request.prompts),
        level=level_at(found.prompts),
        floor_db=found.floor,
        variants=tuple(
            _result(found, row, name, request.stored_bytes[row], predictions.get(name))
            for row, name in enumerate(names)
            if row > 0
        ),
        comparisons=tuple(comparisons),
        winner=winner,
        reason=reason,
        worst_prompts=_worst(found.psnr_db[names.index(winner)], images),
    )


def _worst(psnr_db: Floats, images: Sequence[PlanPrompt]) -> tuple[WorstPrompt, ...]:
    """Return the worst of n images, given (n,) values in dB."""
    order = np.argsort(psnr_db, kind="stable")[:WORST_PROMPTS] if images else ()
    return tuple(
        WorstPrompt(prompt=images[i].prompt, seed=images[i].seed, psnr_db=float(psnr_db[i])) for i in order
    )


def compare(found: Measured, names: Sequence[str], most: int) -> list[Comparison]:
    """Return the comparison of the plan, row 1, with each rival."""
    gains = {name: found.psnr_db[1] - found.psnr_db[row] for row, name in enumerate(names) if row > 1}
    shown = claims(gains, most)
    level = level_at(found.prompts)
    comparisons = []
    for row, name in enumerate(names):
        if row < 2:
            continue
        low, high = interval(gains[name], level)
        noisy = is_within_noise(found, 1) or is_within_noise(found, row)
        claim = None if noisy else shown.get(name)
        comparisons.append(
            Comparison(
                rival=name,
                gain_db=_spread(gains[name]),
                low_db=low if np.isfinite(low) else None,
                high_db=high if np.isfinite(high) else None,
                p_value=p_value(gains[name]),
                claim="within noise" if noisy else _claim_text(claim),
                claimed_at=claim.prompts if claim else None,
            )
        )
    return comparisons


def is_decided(comparisons: Sequence[Comparison]) -> bool:
    """Return whether more prompts would not change what is shipped.

    The uniform models decide, which anybody could make. Where there are none, all rivals do.
    """
    uniform = [one for one in comparisons if one.rival.startswith(UNIFORM)]
    return all(one.claim != "not shown" for one in uniform or comparisons)


def is_within_noise(found: Measured, row: int) -> bool:
    """Return whether a variant is too near to the noise floor for any claim."""
    floor = found.floor
    return floor is not None and float(found.psnr_db[row].mean()) > floor - FLOOR_MARGIN_DB


def choose_winner(
    found: Measured, names: Sequence[str], comparisons: Sequence[Comparison]
) -> tuple[str, str]:
    """Return what is to be shipped, and why.

    The plan, if it is shown to be better than every uniform model and no rival is shown to be better than it.
    Else the best of the rivals that are shown to be better; else the best uniform model, which is simpler.
    """
    plan, mean = names[1], dict(zip(names, found.psnr_db.mean(axis=1).tolist(), strict=True))
    better = [one.rival for one in comparisons if one.claim == "worse"]
    if better:
        best = max(better, key=lambda name: mean[name])
        return best, f"{best} is shown to be better than the {plan}, by {mean[best] - mean[plan]:.1f} dB"
    uniform = [one for one in comparisons if one.rival.startswith(UNIFORM)] or list(comparisons)
    if not uniform:
        return plan, "there is nothing to compare it with"
    best = max((one.rival for one in uniform), key=lambda name: mean[name])
    if all(one.claim == "better" for one in uniform):
        gain = mean[plan] - mean[best]
        return plan, f"it is shown to be better than {best}, by {gain:.1f} dB, and no rival is better"
    simpler = "and it is the simpler model"
    if any(one.claim == "within noise" for one in uniform):
        return best, f"differences are within what rounding alone does, {simpler}"
    if level_at(found.prompts) == 0:
        return best, f"{found.prompts} prompts are too few to show anything, {simpler}"
    return (
        best,
        f"the {plan} is not shown to be better on {found.prompts} prompts, {simpler}",
    )


def _claim_text(claim: Claim | None) -> ClaimText:
    if claim is None:
        return "not shown"
    return "better" if claim.better else "worse"


def _result(found: Measured, row: int, name: str, size: int, prediction: Prediction | None) -> VariantResult:
    def spread(values: Floats, sign: int = 1) -> Spread | None:
        return _spread(values[row], sign) if values.shape[1] else None

    return VariantResult(
        name=name,
        stored_bytes=size,
        psnr_db=_spread(found.psnr_db[row]),
        image_psnr_db=spread(found.image_psnr_db),
        ssim=spread(found.ssim),
        lpips=spread(found.lpips, -1),
        velocity_error={bucket: float(values[row]) for bucket, values in found.velocity_error.items()},
        overflows=int(found.overflows[row]),
        within_noise=is_within_noise(found, row),
        predicted=_predicted(found.relative_squared_error[row], prediction) if prediction else None,
    )


def _predicted(error: Floats, prediction: Prediction) -> PredictedError:
    interval = prediction.median_db
    return PredictedError(
        median_db=interval.value,
        low_db=interval.low,
        high_db=interval.high,
        measured_db=float(-10 * np.log10(max(float(np.median(error)), 1e-20))),
        another_picture=another_picture(prediction, error),
    )


def _spread(values: Floats, sign: int = 1) -> Spread:
    """Return the spread of (n,) values; with `sign` -1 the large ones are the bad ones."""
    return Spread(
        mean=float(values.mean()),
        median=float(np.median(values)),
        tenth=float(sign * np.quantile(sign * values, 0.1)),
        worst=float(sign * (sign * values).min()),
    )


_decoder = msgspec.json.Decoder(Verdict)


def encode_verdict(verdict: Verdict) -> bytes:
    """Return a verdict as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(verdict), indent=1) + b"\n"


def decode_verdict(data: bytes) -> Verdict:
    """Return the verdict that `encode_verdict` wrote.

    Raises:
        InputError: this is none of this format.
    """
    verdict = decode(_decoder, data, InputError, "not a verdict that this revision knows")
    if verdict.format != FORMAT:
        raise InputError(f"a verdict of format {verdict.format}; this revision knows format {FORMAT}")
    return verdict
