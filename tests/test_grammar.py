"""The demo model's grammar, its renderer, and the judge that measures what the model draws."""

import csv
from pathlib import Path

import numpy as np

from training.grammar import RELATIONS, Scene, Thing, all_scenes, sample_scenes
from training.judge import find_things, judge
from training.prompts import prompts
from training.render import render, render_all
from worker.families.diffusionkit.small_models import DEMO
from worker.families.diffusionkit.vocabulary import WORDS

RED = Thing("large", "red", "circle")
BLUE = Thing("small", "blue", "square")
ROOT = Path(__file__).parent.parent


def test_a_prompt_says_what_the_scene_holds() -> None:
    assert Scene((RED, BLUE), "left", "grey").prompt == (
        "a large red circle left of a small blue square on a grey background"
    )
    assert Scene((BLUE,), "top", "white").prompt == "a small blue square at the top of a white background"


def test_prompts_are_unique_and_fit_the_model() -> None:
    said = [scene.prompt for scene in all_scenes()]
    assert len(set(said)) == len(said)
    assert {word for prompt in said for word in prompt.split()} <= set(WORDS)
    assert max(len(prompt.split()) for prompt in said) == DEMO.max_length - 2


def test_prompts_of_the_demo_come_from_the_grammar() -> None:
    with (ROOT / "producer" / "demo_prompts.csv").open(encoding="utf-8", newline="") as file:
        shipped = [row["prompt"] for row in csv.DictReader(file)]
    assert shipped == prompts()
    assert len(set(shipped)) == 200


def test_held_out_combinations_never_appear_in_training() -> None:
    trained = {scene.combination for scene in all_scenes() if not scene.held_out}
    held_out = {scene.combination for scene in all_scenes() if scene.held_out}
    assert not trained & held_out
    assert 0.08 < len(held_out) / len(trained | held_out) < 0.18
    assert all(scene.held_out for scene in sample_scenes(50, seed=1, held_out=True))
    assert not any(scene.held_out for scene in sample_scenes(50, seed=1, held_out=False))


def test_both_wordings_of_a_picture_are_one_combination() -> None:
    for relation, opposite in (("left", "right"), ("above", "below")):
        said = Scene((RED, BLUE), relation, "grey")
        other = Scene((BLUE, RED), opposite, "white")
        assert said.combination == other.combination
    assert len({Scene((RED, BLUE), relation, "grey").combination for relation in RELATIONS}) == 4


def test_samples_and_pictures_follow_their_seed() -> None:
    scenes = sample_scenes(6, seed=3, held_out=False)
    assert scenes == sample_scenes(6, seed=3, held_out=False)
    assert scenes != sample_scenes(6, seed=4, held_out=False)
    np.testing.assert_array_equal(render_all(scenes, seed=1), render_all(scenes, seed=1))
    assert (render_all(scenes, seed=1) != render_all(scenes, seed=2)).any()


def test_judge_finds_true_renders_right() -> None:
    scenes = sample_scenes(8, seed=5, held_out=True)
    for picture, scene in zip(render_all(scenes, seed=5), scenes, strict=True):
        verdict = judge(picture / 255, scene)
        assert all(verdict.colours), scene.prompt
        assert all(verdict.shapes), scene.prompt
        assert verdict.side, scene.prompt
        assert verdict.surplus == 0, scene.prompt


def test_judge_tells_each_kind_of_fault() -> None:
    scene = Scene((RED, BLUE), "left", "grey")
    picture = render(scene, np.random.default_rng(0))
    swapped = judge(picture, Scene((RED, BLUE), "right", "grey"))
    assert swapped.colours == (True, True)
    assert not swapped.side
    other_colour = judge(picture, Scene((Thing("large", "green", "circle"), BLUE), "left", "grey"))
    assert other_colour.colours == (False, True)
    other_shape = judge(picture, Scene((RED, Thing("small", "blue", "cross")), "left", "grey"))
    assert other_shape.shapes == (True, False)
    one_missing = judge(render(Scene((RED,), "left", "grey"), np.random.default_rng(0)), scene)
    assert one_missing.colours == (True, False)
    assert not one_missing.side
    assert judge(picture, Scene((RED,), "left", "grey")).surplus == 1
    assert find_things(np.full((64, 64, 3), 0.5)) == []
