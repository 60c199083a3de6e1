"""The README of an export tells what was shown, and prompts are text in it."""

from typing import Any

from producer.export.readme import export_readme
from producer.inspection.inspect_checkpoint import Inspection
from producer.inspection.layers import Layer
from producer.proof.verdict import Comparison, Spread, VariantResult, Verdict, WorstPrompt
from shared.kinds.verification import VerificationSettings
from shared.plan import Choice
from tests.plans import plan_of
from tests.tasks import SETTINGS

PLAN = plan_of(SETTINGS, "f" * 64, {"q": Choice(bits=4, group_size=64)}, keep=("*adaLN*=8",))


def layer(path: str, **stored: Any) -> Layer:
    return Layer(part="", path=path, shape=(64, 64), certain=True, **stored)


INSPECTION = Inspection(
    path="out",
    layers=(
        layer("q", mode="affine", bits=4, group_size=64, nbytes=2304),
        layer("k", mode="float32", bits=32, group_size=None, nbytes=16384),
    ),
    tensors=5,
    nbytes=20_000,
    problems=(),
)


def verdict(**changes: Any) -> Verdict:
    spread = Spread(mean=30.04, median=31.0, tenth=25.5, worst=20.25)
    gain = Spread(mean=7.0, median=7.1, tenth=5.4, worst=-1.5)
    one: dict[str, Any] = dict.fromkeys(("image_psnr_db", "ssim", "lpips", "predicted"))
    one |= {"velocity_error": {}, "overflows": 0, "within_noise": False, "psnr_db": spread}
    values: dict[str, Any] = {
        "verification_id": "v",
        "purpose": "proof",
        "plan_id": PLAN.id,
        "run": SETTINGS,
        "verification": VerificationSettings(
            run_id=SETTINGS.id, variants_sha256="a" * 64, num_steps=4, cfg_weight=7.5, image_size=64
        ),
        "complete": True,
        "prompts": 8,
        "most": 96,
        "level": 0.0004,
        "floor_db": 61.5,
        "variants": tuple(
            VariantResult(name=name, stored_bytes=1000, **one) for name in ("plan", "uniform 4/64")
        ),
        "comparisons": (
            Comparison(
                rival="uniform 4/64", gain_db=gain, low_db=3.9, high_db=10.1, p_value=0.0, claim="better",
                claimed_at=8,
            ),
        ),
        "winner": "plan",
        "reason": "it is shown to be better",
        "worst_prompts": (WorstPrompt(prompt="a | b\n<img src=x> `c`", seed=3, psnr_db=20.25),),
    }  # fmt: skip
    return Verdict(**values | changes)


def test_gains_intervals_and_worst_prompts_are_told() -> None:
    text = export_readme(PLAN, INSPECTION, verdict())
    for line in (
        "| uniform 4/64 | 1 KB | 30.0 | 31.0 | 25.5 | 20.2 |",
        "| uniform 4/64 | 7.0 | 3.9 to 10.1 | 7.1 | 5.4 | -1.5 | better |",
        "What is in this folder is **plan**: it is shown to be better.",
        "| a &#124; b &#60;img src=x&#62; &#96;c&#96; | 3 | 20.2 |",
        "The original against itself, where only rounding differs: 61.5 dB.",
        "| 4/64 | 1 | 2.3 KB |",
        "| kept | `*adaLN*=8` |",
        "so scales and all that is not quantized are stored in 32 bits",
    ):
        assert line in text
    assert "not complete" not in text


def test_what_is_not_known_is_said_to_be_so() -> None:
    assert "nothing is known of how much the pictures change" in export_readme(PLAN, INSPECTION)
    text = export_readme(
        PLAN, INSPECTION, verdict(complete=False, floor_db=None, comparisons=(), worst_prompts=())
    )
    assert "The proof is not complete" in text
    assert "against itself" not in text
    assert "Gain of the plan" not in text
