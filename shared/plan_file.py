"""plan.json: which choice each layer gets, for how many bytes, and which prompts had which part in it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from shared.decoding import decode
from shared.errors import InputError
from shared.identity import digest_of
from shared.kinds.kind import Layer
from shared.plan import Choice, Variant
from shared.runs import Digest, Identifier, RunSettings, Seed

FORMAT = 1
"""Increased when the meaning of a field changes."""

PLAN = "plan"
"""Name of the plan's variant."""
ORIGINAL = Variant(name="original")
"""The model as it is."""

Target = Literal["image", "velocity"]
Bytes = Annotated[int, Meta(ge=0)]


class PlanPrompt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One image to draw."""

    image_index: Annotated[int, Meta(ge=0, le=10_000_000)]
    """Position of the prompt in the prompt file."""
    prompt: Annotated[str, Meta(max_length=10_000)]
    seed: Seed


class PromptSets(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Four sets of prompts. No text is in two of them, or a plan would be judged on what it was made from."""

    scores: tuple[PlanPrompt, ...] = ()
    """The scores were measured on these."""
    choosing: tuple[PlanPrompt, ...] = ()
    """For the choice among a few plans, and of the best uniform model."""
    prediction: tuple[PlanPrompt, ...] = ()
    """For the predicted error of what was chosen."""
    proof: tuple[PlanPrompt, ...] = ()
    """For the comparison with the original that is reported, in the order in which they are drawn."""

    def check(self) -> None:
        """Check that no text is in two sets.

        Raises:
            InputError: one is.
        """
        owner: dict[str, str] = {}
        for name in self.__struct_fields__:
            for text in {same_text(prompt.prompt) for prompt in getattr(self, name)}:
                if owner.setdefault(text, name) != name:
                    raise InputError(
                        f"the prompt {text[:80]!r} is used for {owner[text]} and for {name}; the sets must "
                        "differ, or the plan would be judged on what it was made from"
                    )


def same_text(prompt: str) -> str:
    """Return a prompt without what does not tell it from another: case and spaces."""
    return " ".join(prompt.casefold().split())


class Scores(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the plan was chosen by."""

    target: Target
    """image: what a choice changes in the final latent. velocity: in the velocity of single steps."""
    source: Identifier
    """Id of the levels, or of the sensitivity run."""
    images: Annotated[int, Meta(ge=0)]
    level: Literal["products", "sketch", "measured"]
    """How a layer's level was taken: from products with plain candidates, from the count sketch of the
    gradient, or as each choice was measured (velocity)."""
    thirds: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Weights of errors made in the early, middle and late third of the steps."""


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A quantized model that is to be made of a run's model."""

    format: int = FORMAT
    run: RunSettings
    fingerprint: Digest
    """Of the model's files; see the model card."""
    layers: dict[Layer, Choice]
    """In the order of the model card. Layers that are not named keep their weights."""
    kept: tuple[Layer, ...]
    """The layers that keep their weights."""
    stored_bytes: Bytes
    """Of the whole transformer: packed weights, scales and biases of 16 bits, all else in 16 bits."""
    budget_bytes: Bytes
    """What was allowed. What the plan is compared with must fit it, too."""
    parameters: Annotated[int, Meta(ge=1)]
    """Of the whole transformer."""
    target: str
    """What was asked for, in the words of the option: `--target-bpw 4.5`."""
    keep: tuple[str, ...] = ()
    """The --keep options."""
    candidates: tuple[Choice, ...]
    """What the plan chose from, besides leaving a layer as it is."""
    weights_id: Identifier
    """Names the folder of the weight errors: weights/<id>."""
    scores: Scores
    score: Annotated[float, Meta(ge=0)]
    """Sum of the chosen scores: the squared error relative to the output, each layer by itself. Plans are
    chosen by it, so it praises them; see prediction."""
    gap: Annotated[float, Meta(ge=0)]
    """No plan of this size has a score below (1 - gap) of this one's."""
    prompts: PromptSets

    @property
    def id(self) -> str:
        """Twelve hex digits. Equal plans have equal ids."""
        return digest_of(self)[:12]

    @property
    def bits_per_weight(self) -> float:
        """Bits of the stored transformer for each of its parameters."""
        return 8 * self.stored_bytes / self.parameters

    @property
    def variant(self) -> Variant:
        """The plan as a variant of the model."""
        return Variant(name=PLAN, layers=self.layers)


_decoder = msgspec.json.Decoder(Plan)


def encode_plan(plan: Plan) -> bytes:
    """Return a plan as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"


def decode_plan(data: bytes, name: str = "this") -> Plan:
    """Return the plan that `encode_plan` wrote; `name` is what messages call it.

    Raises:
        InputError: this is no plan, or its prompts overlap.
    """
    plan = decode(_decoder, data, InputError, f"{name} is no plan that this revision knows")
    if plan.format != FORMAT:
        raise InputError(f"{name} is a plan of format {plan.format}; this revision knows format {FORMAT}")
    plan.prompts.check()
    return plan


def read_plan(path: Path) -> Plan:
    """Read plan.json.

    Raises:
        InputError: the file is missing or no plan, or its prompts overlap.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"no plan at {path} ({error.strerror}); make one with `producer plan`") from None
    return decode_plan(data, str(path))


def numbered(prompts: Sequence[str], indices: Iterable[int], seed: int) -> tuple[PlanPrompt, ...]:
    """Return the images of these positions in a prompt file; `seed` is that of image 0."""
    return tuple(
        # numpy's seeds end at 2**32.
        PlanPrompt(image_index=index, prompt=prompts[index], seed=(seed + index) % 2**32)
        for index in indices
    )
