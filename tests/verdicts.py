"""Verdicts of verifications that nobody ran."""

from collections.abc import Mapping, Sequence

import numpy as np

from producer.folder.verification_request import VerificationRequest
from producer.plan.prediction import Prediction
from producer.proof.measured import measured
from producer.proof.verdict import Verdict, judge
from shared.kinds.verification import VerificationSettings
from shared.plan_file import numbered
from tests.tasks import SETTINGS
from tests.verification_shards import verification_shard

NAMES = ("original", "plan", "uniform 4/64", "random 1")


def request(most: int = 96, names: Sequence[str] = NAMES, **changes: object) -> VerificationRequest:
    settings = VerificationSettings(
        run_id=SETTINGS.id, variants_sha256="a" * 64, num_steps=4, cfg_weight=7.5, image_size=64
    )
    values = {
        "settings": settings,
        "run": SETTINGS,
        "store_id": "relay",
        "purpose": "proof",
        "plan_id": "p" * 12,
        "prompts": numbered([f"prompt {n}" for n in range(96)], range(most), 0),
        "wanted": 8,
        "names": tuple(names),
        "stored_bytes": tuple(1000 + n for n in range(len(names))),
    }
    return VerificationRequest(**values | changes)


def verdict_of(
    means: Sequence[float],
    *,
    prompts: int = 8,
    floor: float | None = 90,
    predictions: Mapping[str, Prediction] | None = None,
    **changes: object,
) -> Verdict:
    rng = np.random.default_rng(4)
    shards = [
        verification_shard(n, rng.normal(means, 0.3), floor_db=floor if n % 8 == 0 else None)
        for n in range(prompts)
    ]
    return judge(measured(shards), request(**changes), complete=True, predictions=predictions or {})
