"""Four sets of prompts that share no text: for scores, for choosing, for the prediction, for the proof."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from producer.folder.run_file import RunFile
from producer.prompts import COLUMN, default_prompts, read_prompts
from shared.errors import InputError
from shared.plan_file import PlanPrompt, PromptSets, numbered, same_text

CHOOSING, PREDICTION, PROOF = 8, 32, 96
"""How many prompts each set takes by default; the proof takes fewer if there are no more."""
MIN_PROOF = 8
"""The proof's first look."""


class PromptFile(NamedTuple):
    """Where prompts come from."""

    path: Path
    column: str = COLUMN

    def read(self) -> list[str]:
        """Return all prompts.

        Raises:
            InputError: see producer.prompts.
        """
        return read_prompts(self.path, 1, self.column)


def prompt_file(path: Path | None, column: str, run: RunFile) -> PromptFile:
    """Return the file that was named, or the one that the run's model has by default."""
    return PromptFile(path or default_prompts(run.settings.model), column)


def images_of(run: RunFile, file: PromptFile, count: int) -> tuple[PlanPrompt, ...]:
    """Return the first images of a run; those beyond its own take the prompts that follow in the file.

    Raises:
        InputError: the file does not begin with the run's prompts, or there are too few.
    """
    prompts: Sequence[str] = run.prompts
    if count > len(prompts):
        try:
            prompts = file.read()
        except InputError as error:
            raise InputError(
                f"the run has {len(run.prompts)} prompts, and {count} images are wanted: {error}; or use "
                f"--images {len(run.prompts)}"
            ) from None
        if tuple(prompts[: len(run.prompts)]) != run.prompts:
            raise InputError(
                f"{file.path} does not begin with the run's {len(run.prompts)} prompts; name the run's own "
                f"file with --prompt-csv, or use --images {len(run.prompts)}"
            )
        if count > len(prompts):
            raise InputError(
                f"{file.path} has {len(prompts)} prompts, {count} images need as many; add prompts, or use "
                f"--images {len(prompts)}"
            )
    return numbered(prompts, range(count), run.settings.seed)


def prompt_sets(
    scores: tuple[PlanPrompt, ...],
    file: PromptFile,
    seed: int,
    *,
    choosing: int = CHOOSING,
    prediction: int = PREDICTION,
    proof: int = PROOF,
) -> PromptSets:
    """Return four sets. All but the scores' are taken from a prompt file, in order, each text once.

    Args:
        scores: the images that the scores were measured on; their texts are left out.
        file: the prompt file.
        seed: of the file's first image.
        choosing: how many prompts to take for the choice among plans.
        prediction: how many for the prediction.
        proof: how many for the proof, at most.

    Raises:
        InputError: too few prompts are left.
    """
    prompts = file.read()
    used = {same_text(prompt.prompt) for prompt in scores}
    free: list[int] = []
    for index, prompt in enumerate(prompts):
        text = same_text(prompt)
        if text not in used:
            used.add(text)
            free.append(index)
    before = choosing + prediction
    least = min(MIN_PROOF, proof)
    if len(free) < before + least:
        raise InputError(
            f"{file.path} has {len(free)} prompts that the scores were not measured on; {choosing} are for "
            f"choosing (--choosing), {prediction} for the prediction (--prediction), and the proof needs "
            f"{least} more: add {before + least - len(free)} prompts, or name another file with --prompt-csv"
        )
    sets = PromptSets(
        scores=scores,
        choosing=numbered(prompts, free[:choosing], seed),
        prediction=numbered(prompts, free[choosing:before], seed),
        proof=numbered(prompts, free[before : before + proof], seed),
    )
    sets.check()
    return sets
