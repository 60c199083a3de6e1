"""Four sets of prompts from one file, none with a text of another."""

from pathlib import Path

import pytest

from producer.folder.run_file import RunFile
from producer.plan.prompt_sets import PromptFile, images_of, prompt_sets
from shared.errors import InputError
from shared.plan_file import numbered, same_text
from tests.planned import PROMPTS, prompt_csv
from tests.tasks import SETTINGS

RUN = RunFile(settings=SETTINGS, prompts=PROMPTS[:4], store_id="relay", store=None)


def test_the_sets_follow_each_other_in_the_file(tmp_path: Path) -> None:
    file = PromptFile(prompt_csv(tmp_path / "prompts.csv"))
    sets = prompt_sets(numbered(PROMPTS, range(16), 3), file, 3)
    assert [image.image_index for image in sets.choosing] == list(range(16, 24))
    assert [image.image_index for image in sets.prediction] == list(range(24, 56))
    assert [image.image_index for image in sets.proof] == list(range(56, 152))
    assert sets.proof[0].seed == 59


def test_a_text_that_was_used_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(
        "prompt\n" + "\n".join(["A Cat", "a  cat", *(f"number {n}" for n in range(10)), "number 3"])
    )
    sets = prompt_sets(numbered(["a cat"], [0], 0), PromptFile(path), 0, choosing=1, prediction=1, proof=20)
    texts = [
        same_text(image.prompt) for part in (sets.choosing, sets.prediction, sets.proof) for image in part
    ]
    assert texts == [f"number {n}" for n in range(10)]


def test_too_few_prompts_are_told_with_the_options(tmp_path: Path) -> None:
    file = PromptFile(prompt_csv(tmp_path / "few.csv", 30))
    with pytest.raises(
        InputError,
        match=r"has 14 prompts .* 8 are for choosing \(--choosing\), 32 .*--prediction.* add 34 prompts",
    ):
        prompt_sets(numbered(PROMPTS, range(16), 0), file, 0)
    assert len(prompt_sets(numbered(PROMPTS, range(16), 0), file, 0, choosing=2, prediction=4).proof) == 8


def test_levels_take_the_runs_prompts_and_those_that_follow_in_its_file(tmp_path: Path) -> None:
    missing, file = PromptFile(tmp_path / "missing.csv"), PromptFile(prompt_csv(tmp_path / "prompts.csv"))
    assert images_of(RUN, missing, 4) == numbered(PROMPTS, range(4), 0)
    assert images_of(RUN, file, 16) == numbered(PROMPTS, range(16), 0)
    with pytest.raises(InputError, match=r"the run has 4 prompts, and 16 images .*missing.csv.*--images 4"):
        images_of(RUN, missing, 16)
    with pytest.raises(InputError, match="has 200 prompts, 201 images need as many"):
        images_of(RUN, file, 201)
    other = tmp_path / "other.csv"
    other.write_text("prompt\n" + "\n".join(reversed(PROMPTS)))
    with pytest.raises(InputError, match="does not begin with the run's 4 prompts"):
        images_of(RUN, PromptFile(other), 16)
