"""The arithmetic of a proof: looks, claims, the noise floor, and who wins."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from producer.plan.prediction import Interval, Prediction
from producer.proof.looks import Claim, claims, interval, level_at, next_look, p_value
from producer.proof.measured import measured
from producer.proof.verdict import compare, decode_verdict, encode_verdict, is_decided
from shared.errors import InputError
from shared.metrics import Floats
from tests.verdicts import NAMES, verdict_of
from tests.verification_shards import verification_shard

DEVIATION = 2.5


def test_looks_follow_each_other_and_end_at_the_limit() -> None:
    def looks(most: int) -> list[int]:
        seen = [next_look(0, most)]
        while seen[-1] < most:
            seen.append(next_look(seen[-1], most))
        return seen

    assert looks(96) == [8, 16, 32, 64, 96]
    assert looks(24) == [8, 16, 24]
    assert looks(8) == [8]
    assert looks(5) == [5]
    assert [level_at(prompts) for prompts in (5, 8, 24, 96)] == [0, 0.0004, 0.0032, 0.030]


def test_p_values_and_intervals_are_those_of_a_t_test() -> None:
    gains = np.random.default_rng(0).normal(1, 2, 20)
    expected = stats.ttest_1samp(gains, 0)
    assert p_value(gains) == pytest.approx(expected.pvalue)
    ends = expected.confidence_interval(0.98)
    assert interval(gains, 0.02) == pytest.approx((ends.low, ends.high))
    assert (p_value(np.zeros(9)), p_value(np.ones(1)), p_value(np.ones(9))) == (1, 1, 0)


def draw(rng: np.random.Generator, gains: Sequence[float]) -> dict[str, Floats]:
    """Gains of the plan over rivals on 96 prompts; all share what the plan does there."""
    of_plan = rng.normal(0, DEVIATION * 0.5**0.5, 96)
    return {
        str(rival): gain + of_plan + rng.normal(0, DEVIATION * 0.5**0.5, 96)
        for rival, gain in enumerate(gains)
    }


@pytest.mark.parametrize(("gains", "runs"), [((0,), 2000), ((0, 0, 0, 8), 1000)], ids=str)
def test_at_most_five_in_a_hundred_proofs_claim_anything_false(gains: Sequence[float], runs: int) -> None:
    rng = np.random.default_rng(1)
    false = sum(any(gains[int(name)] == 0 for name in claims(draw(rng, gains))) for _ in range(runs))
    assert 0.02 < false / runs < 0.05 + 2 * (0.05 * 0.95 / runs) ** 0.5


def prompts_taken(gains: dict[str, Floats]) -> int:
    prompts = next_look(0, 96)
    while prompts < 96 and not claims({name: values[:prompts] for name, values in gains.items()}):
        prompts = next_look(prompts, 96)
    return prompts


@pytest.mark.parametrize(("gain", "least", "most"), [(8, 8.2, 9.5), (4, 13, 15.5), (2, 24, 30)])
def test_a_proof_spends_only_what_the_gain_needs(gain: float, least: float, most: float) -> None:
    rng = np.random.default_rng(2)
    taken = [prompts_taken(draw(rng, [gain])) for _ in range(300)]
    assert least < np.mean(taken) < most


def test_what_was_claimed_stays_claimed_and_shares_its_level_with_the_rest() -> None:
    rng = np.random.default_rng(3)
    gains = {"clear": rng.normal(10, 1, 16), "other": 1.89 + 2 * stats.zscore(rng.normal(size=16), ddof=1)}
    assert claims({name: values[:8] for name, values in gains.items()}) == {
        "clear": Claim(better=True, prompts=8)
    }
    alone = level_at(16) * 0.05 / 0.0632
    assert alone / 2 < p_value(gains["other"]) < alone, "with two rivals undecided it would not be claimed"
    assert claims(gains)["other"] == Claim(better=True, prompts=16)
    # The last of several has to be clearer than one alone.
    nearly = {"clear": gains["clear"], "other": gains["other"] - 0.115}
    assert alone < p_value(nearly["other"]) < level_at(16)
    assert "other" not in claims(nearly) and "other" in claims({"other": nearly["other"]})
    # A later reversal takes nothing back, and an interim number of prompts is no look.
    gains["clear"][8:] = -20
    assert claims(gains)["clear"] == Claim(better=True, prompts=8)
    assert claims({"clear": rng.normal(10, 1, 7)}) == {}
    assert claims({"clear": np.append(np.zeros(8), rng.normal(90, 1, 3))}, 96) == {}
    assert claims({"worse": rng.normal(-10, 1, 8)}) == {"worse": Claim(better=False, prompts=8)}


def test_the_plan_wins_where_it_is_shown_to_be_better() -> None:
    verdict = verdict_of([30, 22, 15])
    assert verdict.winner == "plan"
    assert verdict.reason == "it is shown to be better than uniform 4/64, by 8.2 dB, and no rival is better"
    assert [one.claim for one in verdict.comparisons] == ["better", "better"]
    gain = verdict.comparisons[0]
    assert gain.low_db < gain.gain_db.mean < gain.high_db
    assert gain.gain_db.worst < gain.gain_db.tenth < gain.gain_db.median
    assert verdict.floor_db == pytest.approx(90)
    plan = verdict.variants[0]
    assert (plan.name, plan.stored_bytes) == ("plan", 1001)
    assert plan.psnr_db.mean == pytest.approx(30, abs=0.3)
    assert plan.ssim.mean == pytest.approx(0.30, abs=0.003)
    assert plan.velocity_error["early"] < plan.velocity_error["late"] < 0.1
    assert decode_verdict(encode_verdict(verdict)) == verdict


@pytest.mark.parametrize(
    ("means", "changes", "winner", "reason"),
    [
        ([22, 30, 15], {}, "uniform 4/64", "uniform 4/64 is shown to be better than the plan, by 7"),
        ([22, 15, 30], {}, "random 1", "random 1 is shown to be better than the plan, by 8"),
        ([22, 22, 15], {}, "uniform 4/64", "the plan is not shown to be better on 8 prompts"),
        ([30, 22, 15], {"prompts": 5, "most": 5}, "uniform 4/64", "5 prompts are too few to show anything"),
        ([30, 22, 15], {"floor": 32}, "uniform 4/64", "differences are within what rounding alone does"),
        ([30, 22, 15], {"floor": None}, "plan", "it is shown to be better"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value)[:20],
)
def test_what_is_shipped_is_the_winner_even_if_it_is_uniform(
    means: Sequence[float], changes: dict, winner: str, reason: str
) -> None:
    verdict = verdict_of(means, **changes)
    assert verdict.winner == winner
    assert verdict.reason.startswith(reason)


def test_nothing_is_claimed_near_the_noise_floor() -> None:
    verdict = verdict_of([30, 22, 15], floor=24)
    assert [one.claim for one in verdict.comparisons] == ["within noise", "within noise"]
    assert [one.within_noise for one in verdict.variants] == [True, True, False]


def test_only_what_decides_asks_for_more_prompts() -> None:
    rng = np.random.default_rng(5)

    def decided(*means: float, names: Sequence[str] = NAMES) -> bool:
        shards = [verification_shard(n, rng.normal(means, 0.3), floor_db=90) for n in range(8)]
        return is_decided(compare(measured(shards), names, 96))

    assert decided(30, 22, 30), "a random plan that is as good changes nothing"
    assert decided(22, 30, 22)
    assert not decided(22, 22, 15)
    assert not decided(30, 22, 30, names=("original", "plan", "rule of thumb", "random 1"))
    assert decided(89, 89, 15), "more prompts would not tell noise from noise"


def test_predictions_stand_beside_what_was_measured() -> None:
    # PSNR 30 dB with a peak of 1, and squares of 100 elements that sum to 25, are 24 dB of relative error.
    around = Interval(value=25, low=24, high=26)
    prediction = Prediction(
        name="plan",
        images=16,
        median_db=around,
        mean_db=around,
        median_squared_error=10**-2.5,
        joint=1.1,
        squared_error=(10**-2.5,),
        image_index=(0,),
    )
    verdict = verdict_of([30, 22, 15], predictions={"plan": prediction})
    told = verdict.variants[0].predicted
    assert (told.median_db, told.low_db, told.high_db, told.another_picture) == (25, 24, 26, 0)
    assert told.measured_db == pytest.approx(24, abs=0.3)
    assert verdict.variants[1].predicted is None
    worse = verdict_of([18, 22, 15], predictions={"plan": prediction}).variants[0].predicted
    assert worse.another_picture == 1


def test_candidates_are_chosen_by_their_mean_and_nothing_is_claimed() -> None:
    names = ("original", "plan a", "plan b", "plan c")
    verdict = verdict_of([20, 25, 22], purpose="choosing", names=names)
    assert (verdict.winner, verdict.comparisons) == ("plan b", ())


def test_variants_that_overflow_and_pictures_that_are_missing_are_told() -> None:
    shards = [
        verification_shard(
            n, [30, 22, 0], overflows=np.array([False, False, False, True]), has_images=np.array(n == 0)
        )
        for n in range(3)
    ]
    found = measured(shards)
    assert found.overflows.tolist() == [0, 0, 0, 3]
    assert (found.psnr_db.shape, found.ssim.shape, found.lpips.shape) == ((4, 3), (4, 1), (4, 0))
    assert found.floor is None


def test_verdicts_of_other_formats_are_refused() -> None:
    text = encode_verdict(verdict_of([30, 22, 15])).replace(b'"format": 1', b'"format": 2')
    with pytest.raises(InputError, match="format 2; this revision knows format 1"):
        decode_verdict(text)
