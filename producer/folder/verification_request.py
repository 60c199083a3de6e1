"""request.json of a verification. Variants and plan lie beside it, and later the verdict."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from shared.kinds.verification import VerificationSettings, VerificationTask
from shared.plan_file import PlanPrompt
from shared.runs import RunSettings

VARIANTS = "variants.json"
PLAN = "plan.json"
VERDICT = "verification.json"
WINNER = "winner.json"
"""The plan of what is to be shipped."""

FLOOR_EVERY = 8
"""The original is drawn twice on every eighth prompt, the first included."""
SHOWN_PROMPTS, SHOWN_VARIANTS = 4, 6
"""Of the first so many prompts the first so many variants keep their pictures."""


class VerificationRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `enqueue-verification` asked for."""

    settings: VerificationSettings
    run: RunSettings
    """With which the images are drawn: those of the folder's run, but for steps, cfg_weight and size."""
    store_id: str
    purpose: Literal["choosing", "proof"]
    plan_id: str
    """Of the plan that is to be proved; of the first candidate where one is to be chosen."""
    prompts: tuple[PlanPrompt, ...]
    """All that may be drawn."""
    wanted: Annotated[int, Meta(ge=0)]
    """So many of the prompts are to be drawn, from the first. Grows from look to look."""
    names: tuple[str, ...]
    """Of the variants, in their order: original, plan, rivals. Where a plan is to be chosen: original,
    candidates."""
    stored_bytes: tuple[int, ...]
    """Of each variant's transformer."""
    proofs: tuple[str, ...] = ()
    """Where a plan is to be chosen: for each candidate, the id of the verification that proves it."""

    def tasks(self) -> list[VerificationTask]:
        """Return one task for each prompt that is to be drawn."""
        return [
            VerificationTask(
                run=self.run,
                store_id=self.store_id,
                verification=self.settings,
                image_index=image.image_index,
                prompt=image.prompt,
                seed=image.seed,
                floor=number % FLOOR_EVERY == 0,
                shown=SHOWN_VARIANTS if number < SHOWN_PROMPTS else 0,
            )
            for number, image in enumerate(self.prompts[: self.wanted])
        ]
