"""Plans as `producer plan` writes them, without its measurements."""

from collections.abc import Mapping
from typing import Any

from shared.plan import Choice
from shared.plan_file import Plan, PromptSets, Scores
from shared.runs import RunSettings


def plan_of(run: RunSettings, fingerprint: str, layers: Mapping[str, Choice], **changes: Any) -> Plan:
    """A plan of these layers; what it cost and was chosen by is made up."""
    values: dict[str, Any] = {
        "run": run,
        "fingerprint": fingerprint,
        "layers": dict(layers),
        "kept": (),
        "stored_bytes": 1_000_000,
        "budget_bytes": 1_100_000,
        "parameters": 4_000_000,
        "target": "--target-bpw 4.5",
        "candidates": tuple(sorted(set(layers.values()))),
        "weights_id": "w",
        "scores": Scores(target="image", source="s", images=4, level="products"),
        "score": 0.01,
        "gap": 0.001,
        "prompts": PromptSets(),
    }
    return Plan(**values | changes)
