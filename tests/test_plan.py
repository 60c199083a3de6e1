"""`producer plan`: from a folder with weight errors and levels to plan.json."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from producer.cli import main
from producer.folder.calib_folder import CalibFolder
from producer.folder.request_file import RequestFile
from producer.kinds.weights import read_weights
from producer.plan.offers import make_offers
from producer.plan.planner import PlanOptions, make_plans
from producer.plan.prompt_sets import PromptFile
from producer.plan.rivals import rivals_of, uniform
from producer.plan.scores import scores_of
from producer.plan.targets import Target, like, max_error, target_bpw, target_mb
from producer.results.merge import merge_results
from producer.results.results import encode_results
from shared.errors import InputError
from shared.files import write_atomically
from shared.plan import Choice, Variant
from shared.plan_file import Plan, read_plan
from shared.runs import SensitivitySettings
from tests.conftest import Example
from tests.planned import CANDIDATES, PLAIN, TIED, card, levels_of, planned_folder, prompt_csv, weights_of
from tests.tasks import SETTINGS

CARD = card()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planned")
    planned_folder(root / "calib", dead=("block.1.q",))
    prompt_csv(root / "prompts.csv")
    return root


def make(root: Path, *targets: Target, **options: Any) -> list[Plan]:
    file = PromptFile(root / "prompts.csv")
    return make_plans(CalibFolder(root / "calib"), PlanOptions(targets=targets, prompts=file, **options))


def call(root: Path, *arguments: str) -> Result:
    where = ["--calib-dir", str(root / "calib"), "--prompt-csv", str(root / "prompts.csv")]
    return CliRunner().invoke(main, ["plan", *where, *arguments])


def error_of(layers: dict[str, Choice]) -> float:
    """The sum of a model's scores, counted here anew."""
    shards = [levels_of(CARD, image, dead=("block.1.q",)) for image in range(16)]
    scores = scores_of(shards, PLAIN, weights_of(CARD))
    return sum(
        scores.error[row, CANDIDATES.index(layers[layer.path])]
        for row, layer in enumerate(CARD.layers)
        if layer.path in layers
    )


def bytes_of(layers: dict[str, Choice]) -> int:
    return make_offers(CARD, weights_of(CARD)).variant_bytes(layers)


def test_a_plan_fits_and_is_better_than_its_rivals(root: Path) -> None:
    (plan,) = make(root, like("uniform:4"))
    weights = read_weights(CalibFolder(root / "calib"), plan.weights_id)
    assert plan.stored_bytes == bytes_of(plan.layers) <= plan.budget_bytes
    assert plan.stored_bytes > 0.99 * plan.budget_bytes
    assert plan.score == pytest.approx(error_of(plan.layers))
    assert plan.gap < 1e-3
    assert plan.scores.level == "products"
    assert plan.scores.images == 16
    for rival in rivals_of(plan, CARD, weights).variants():
        tied = {rival.layers.get(path) for path in TIED}
        assert len(tied) > 1 or error_of(rival.layers) > plan.score, rival.name
    assert len({plan.layers[path] for path in TIED}) == 1
    assert plan.layers["block.1.q"] == Choice(bits=2, group_size=128)
    assert [image.image_index for image in plan.prompts.proof] == list(range(56, 152))


def test_each_target_is_reached(root: Path) -> None:
    plans = make(root, target_bpw(4.5), target_mb(0.7), like("uniform:3/32"), max_error(0.01))
    bits, size, three, error = plans
    assert 4.45 < bits.bits_per_weight <= 4.5
    assert 0.69e6 < size.stored_bytes <= 0.7e6
    like_three = uniform(make_offers(CARD, weights_of(CARD)), Choice(bits=3, group_size=32))
    assert three.budget_bytes == bytes_of(like_three.layers)
    assert error.score <= 0.01**2
    (smaller,) = make(root, target_mb(error.stored_bytes / 1e6 - 0.02))
    assert smaller.score > 0.01**2
    assert len({plan.id for plan in plans}) == 4


def test_a_larger_plan_is_never_worse(root: Path) -> None:
    plans = make(root, *(target_bpw(2.5 + number / 3) for number in range(20)))
    scores = [plan.score for plan in plans]
    assert scores == sorted(scores, reverse=True)


def test_levels_can_be_taken_in_two_ways(root: Path) -> None:
    by = {way: make(root, target_bpw(4), levels_by=way)[0] for way in (None, "products", "sketch")}
    assert by[None] == by["products"]
    assert by["sketch"].scores.level == "sketch"
    assert by["sketch"].score != by["products"].score
    assert call(root, "--target-bpw", "4", "--levels-by", "sketch").exit_code == 0


def test_wishes_are_kept(root: Path) -> None:
    keep = ["*adaLN*=8", "context_embedder=keep", "block.1.narrow=3/32", "block.0.q=5"]
    (plan,) = make(root, target_bpw(8), keep=keep)
    assert all(plan.layers[path].bits >= 8 for path in plan.layers if "adaLN" in path)
    assert "context_embedder" in plan.kept
    assert plan.layers["block.1.narrow"] == Choice(bits=3, group_size=32)
    assert plan.layers["block.0.v"].bits >= 5, "tied to block.0.q"
    assert plan.keep == tuple(keep)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (target_bpw(1.5), r"--target-bpw 1.5 can't be reached: .* (\S+) to 16 bits a weight; ask for more"),
        (target_bpw(17), r"--target-bpw 17 can't be reached: .* (\S+) to 16 bits a weight; ask for less"),
        (target_mb(0.001), r"--target-mb 0.001 can't be reached"),
        (max_error(1e3), r"--max-error 1000 can't be reached: the predicted relative error goes from 0 with"),
    ],
)
def test_what_can_not_be_reached_is_told_with_the_range(root: Path, target: Target, message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        make(root, target)
    if found := re.search(r"(\S+) to 16 bits", str(told.value)):
        (least,) = make(root, target_bpw(float(found[1])))
        assert least.stored_bytes <= least.budget_bytes


def test_velocity_plans_need_weight_errors_of_what_was_measured(root: Path) -> None:
    with pytest.raises(InputError, match="no sensitivity in this folder yet; ask for one with `producer enq"):
        make(root, target_bpw(4.5), scores="velocity")


def measured(folder: CalibFolder) -> str:
    """Leave the results of an exact measurement at groups of 64; return its id."""
    example = Example(num_steps=SETTINGS.num_steps)
    sensitivity = SensitivitySettings(run_id=SETTINGS.id, sample_set_sha256="b" * 64, group_size=64)
    for name, value in (("card", CARD), ("run", SETTINGS), ("sensitivity", sensitivity)):
        object.__setattr__(example, name, value)
    gone = ("block.0.fc1", 2)
    finished = [
        pair
        for pair in example.finished()
        if pair.task.layer != "block.1.narrow" and (pair.task.layer, pair.task.bits) != gone
    ]
    results = merge_results(finished, run=SETTINGS, sensitivity=sensitivity, card=CARD, missing=[])
    subfolder = folder.sensitivity(sensitivity.id)
    request = RequestFile(
        settings=sensitivity, layers=(), bits=(2, 4, 8), samples=24, max_images=4, step_stride=1
    )
    subfolder.write_request(request)
    write_atomically(subfolder.results_path, encode_results(results))
    return sensitivity.id


def test_a_plan_by_velocity_takes_what_was_measured(tmp_path: Path) -> None:
    folder = planned_folder(tmp_path / "calib")
    prompt_csv(tmp_path / "prompts.csv")
    source = measured(folder)
    result = call(tmp_path, "--target-bpw", "4.6", "--target", "velocity", "--out", str(tmp_path / "v.json"))
    assert result.exit_code == 0, result.output
    plan = read_plan(tmp_path / "v.json")
    assert plan.scores.source == source
    assert (plan.scores.target, plan.scores.level, plan.scores.images) == ("velocity", "measured", 4)
    assert plan.kept == ("block.1.narrow",), "its inputs are no multiple of 64"
    assert {choice.group_size for choice in plan.layers.values()} == {64}
    assert {choice.bits for choice in plan.layers.values()} <= {2, 4, 8}
    assert len(plan.prompts.scores) == 4
    smallest = call(
        tmp_path, "--target-bpw", "3.14", "--target", "velocity", "--out", str(tmp_path / "v.json")
    )
    assert smallest.exit_code == 0, smallest.output
    bits = {path: choice.bits for path, choice in read_plan(tmp_path / "v.json").layers.items()}
    assert set(bits.values()) == {2, 4}
    assert bits["block.0.fc1"] == 4, "2 bits were not measured there"
    for weights in folder.weights.all():
        weights.request_path.unlink()
        weights.records.root.rename(tmp_path / "elsewhere")
    result = call(tmp_path, "--target-bpw", "4.6", "--target", "velocity")
    assert "enqueue-levels --images 0 --bits 2,4,8" in result.output


def test_the_command_writes_the_plan_and_tells_it(root: Path) -> None:
    path = root / "out.json"
    result = call(root, "--target-bpw", "4.5", "--keep", "*adaLN*=8", "--out", str(path))
    assert result.exit_code == 0, result.output
    plan = read_plan(path)
    assert read_plan(root / "calib" / "plans" / plan.id / "plan.json") == plan
    assert plan.id in result.output
    assert f"{plan.bits_per_weight:.3f}" in result.output
    assert "16 for the scores, 8 for choosing, 32 for the prediction, 96 for the proof" in result.output


def test_several_targets_make_a_frontier(root: Path) -> None:
    result = call(root, "--target-bpw", "3", "--target-bpw", "4", "--like", "uniform:6")
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"^plan [0-9a-f]{12}: ", result.output, re.M)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say how large: --target-bpw 4.5"),
        (["--like", "best:4"], "write uniform:4"),
        (["--like", "uniform:7"], "'7/64' is no choice"),
        (["--target-bpw", "4", "--target-bpw", "5", "--out", "x.json"], "--out takes one plan"),
        (["--target-bpw", "4", "--max-step-time", "1"], "go together"),
        (["--target-bpw", "4", "--buckets", "middle=1"], "write early=1,mid=1,late=2"),
        (["--target-bpw", "4", "--scores", "nope"], "name the levels to use with --scores; there is"),
        (["--target-bpw", "4", "--keep", "*=9"], "is no number of bits"),
    ],
)
def test_bad_options_are_told_in_one_line(root: Path, arguments: list[str], message: str) -> None:
    result = call(root, *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_time_is_a_limit_beside_bytes(root: Path, tmp_path: Path) -> None:
    table = tmp_path / "times.csv"
    rows = [f"{c.bits},{c.group_size},{1 + c.bits / 100 + (c.group_size == 32)}" for c in CANDIDATES]
    table.write_text("bits,group_size,seconds\n" + "\n".join([*rows, "16,,0.9"]))
    (free,) = make(root, target_bpw(4.5))
    assert any(choice.group_size == 32 for choice in free.layers.values())
    weights = {layer.path: layer.shape[0] * layer.shape[1] for layer in CARD.layers}
    share = np.array(list(weights.values())) / sum(weights.values())

    def step(plan: Plan) -> float:
        seconds = {path: 1 + c.bits / 100 + (c.group_size == 32) for path, c in plan.layers.items()}
        return float(sum(part * seconds.get(path, 0.9) for path, part in zip(weights, share, strict=True)))

    limit = round(step(free) * 0.95, 4)
    path = tmp_path / "fast.json"
    times = ["--step-times", str(table), "--max-step-time"]
    result = call(root, "--target-bpw", "4.5", *times, str(limit), "--out", str(path))
    assert result.exit_code == 0, result.output
    fast = read_plan(path)
    assert step(fast) <= limit
    assert fast.score > free.score
    too_fast = call(root, "--target-bpw", "4.5", *times, "0.5")
    assert "the fastest of what is offered takes 0.9 s" in too_fast.output
    table.write_text("bits,group_size,seconds\n4,64,never\n")
    assert "line 2: write bits, group_size and seconds" in call(root, "--target-bpw", "4", *times, "1").output


def test_nothing_collected_is_told(tmp_path: Path) -> None:
    folder = planned_folder(tmp_path / "calib")
    prompt_csv(tmp_path / "prompts.csv")
    (levels,) = folder.levels.all()
    records = list(levels.records.read())
    for record in records[12:]:
        levels.records.drop(record)
    result = call(tmp_path, "--target-bpw", "4.5")
    assert result.exit_code == 0, result.output
    assert "the scores are of 12 of 16 images" in result.output
    for record in records[3:]:
        levels.records.drop(record)
    result = call(tmp_path, "--target-bpw", "4.5")
    assert "3 of 16 images of levels" in result.output
    (weights,) = folder.weights.all()
    for record in weights.records.read():
        weights.records.drop(record)
    assert "weight errors of 18 candidates" in call(tmp_path, "--target-bpw", "4.5").output
    levels.request_path.unlink()
    levels.records.root.rename(tmp_path / "elsewhere")
    assert "there is no levels in this folder" in call(tmp_path, "--target-bpw", "4.5").output


def test_variants_name_the_plan(root: Path) -> None:
    (plan,) = make(root, target_bpw(4.5))
    assert plan.variant == Variant(name="plan", layers=plan.layers)
