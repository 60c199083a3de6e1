"""What `producer run` says it will cost, part by part, and when it counts chosen layers."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from producer.cli import main
from producer.folder.calib_folder import CalibFolder
from producer.plan.rivals import rivals_of
from producer.run_cost import UNCOUNTED, ChosenLayers, Range, RunCost, proof_models, proof_prompts
from shared.errors import InputError
from tests.fleet import Fleet
from tests.planned import CANDIDATES, card, plan_of, prompt_csv, weights_of
from tests.tasks import SETTINGS, image_task, record_of

TINY = ["--model", "tiny-sd3", "--num-images", "20", "--num-steps", "3"]


def run_cost(**changes: Any) -> RunCost:
    options = {
        "bits": [2, 4],
        "group_size": "64",
        "max_images": None,
        "step_stride": None,
        "layers": "*",
        "method": "exact",
        "probes": 8,
        "verify": 0,
    }
    return RunCost(run=SETTINGS, images=20, sensitivity=options | changes)


def told(root: Path, *arguments: str) -> str:
    prompts = prompt_csv(root / "prompts.csv", 40)
    before = sorted(root.rglob("*"))
    where = ["--prompt-csv", str(prompts), "--calib-dir", str(root / "calib")]
    result = CliRunner().invoke(main, ["run", "--dry-run", *TINY, *where, *arguments])
    assert result.exit_code == 0, result.output
    assert sorted(root.rglob("*")) == before
    assert result.output.endswith("\nnothing was started\n")
    return result.output


def test_a_whole_run(tmp_path: Path) -> None:
    said = told(tmp_path).splitlines()
    assert said[0] == "images: 20, about 60 forward passes"
    assert said[1].startswith("measurement: ")
    assert said[2] == "levels: 16 images, about 264 forward passes"
    # 24 prompts are left; 3 steps.
    assert said[3] == "proof: 8 to 24 prompts by 3 to 5 models, about 72 to 360 forward passes"
    assert said[4].startswith("cost: about ")
    assert said[5].startswith("time: not known yet; ")
    assert said[6].startswith("disk: at most ")
    measuring = float(said[1].split()[-3].replace(",", ""))
    least, most = (float(word.replace(",", "")) for word in said[4].split()[2:5:2])
    assert least == pytest.approx(60 + measuring + 264 + 72, abs=1)
    assert most - least == 288


def test_until_the_report_and_with_chosen_layers(tmp_path: Path) -> None:
    said = told(tmp_path, "--no-plan", "--method", "sketch", "--layers", "nothing.like.it")
    assert "measurement: all layers by a sketch, about " in said
    assert "levels" not in said
    said = told(tmp_path, "--layers", "*fc1", "--max-prompts", "30")
    assert f"measurement: {UNCOUNTED}\n" in said
    assert "forward passes and the measurement\n" in said
    assert "proof: 8 to 24 prompts" in said


def test_images_that_are_drawn_already_tell_the_time(tmp_path: Path) -> None:
    folder = CalibFolder(tmp_path / "calib")
    folder.records.root.mkdir(parents=True)
    for index in range(20):
        folder.records.write(record_of(image_task(index), b"", seconds=8.0))
    said = told(tmp_path, "--no-plan", "--method", "sketch", "--workers", "2")
    assert said.startswith("images: 0, about 0 forward passes\n")
    passes = int(said.split("cost: about ")[1].split()[0].replace(",", ""))
    # Four steps in eight seconds, by each of two workers.
    assert (
        f"time: about {passes // 60} minutes and {passes % 60} seconds by the images so far, with 2" in said
    )


def test_the_prompts_of_a_proof() -> None:
    file = [f"prompt {number}" for number in range(30)]
    assert proof_prompts(file, file[:16], 96) == (8, 14)
    assert proof_prompts(file, file[:16], 10) == (8, 10)
    assert proof_prompts([*file, "PROMPT 1 "], file[:23], 96) == (0, 0)
    assert proof_prompts(file, file[:23], 4) == (4, 4)


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5, 0.9])
def test_a_proof_has_as_many_models_as_were_counted(share: float) -> None:
    model = card()
    weights = weights_of(model, CANDIDATES)
    plan = plan_of(model)
    whole = sum(2 * layer.shape[0] * layer.shape[1] for layer in model.layers)
    rivals = rivals_of(plan_of(model, budget_bytes=plan.budget_bytes + int(share * whole)), model, weights)
    least, most = proof_models("uniform")
    assert least <= 2 + len(rivals.uniform) <= most
    least, most = proof_models("all")
    assert least <= 2 + len(rivals.variants()) <= most


def test_a_sketchs_verification_counts() -> None:
    alone = run_cost(method="sketch").until_report(None)
    assert run_cost(method="sketch", verify=7).until_report(None) - alone == pytest.approx(
        7 * (run_cost(bits=[2]).until_report(1) - run_cost(bits=[2]).until_report(0))
    )


class TestChosenLayers:
    """Their names come with the first image."""

    def test_they_are_counted_once_they_have_names(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, cost = CalibFolder(tmp_path), run_cost(layers="block.0.*,final*")
        chosen = ChosenLayers(cost, folder, yes=False)
        images = 20 * SETTINGS.num_steps
        assert chosen.before_anything() == (
            f"cost until the report: about {images} forward passes for the images; {UNCOUNTED}"
        )
        chosen.check()
        assert capsys.readouterr().out == ""
        folder.write_model(card())
        assert cost.layers(folder) == 8
        passes = cost.until_report(8)
        assert passes > images
        monkeypatch.setattr("producer.cost.MAX_PASSES", passes - 1)
        with pytest.raises(InputError, match="--method sketch"):
            chosen.check()
        assert capsys.readouterr().out == ""
        said = f"cost until the report: about {passes:,.0f} forward passes"
        meant = ChosenLayers(cost, folder, yes=True)
        assert meant.before_anything() == said
        meant.check()
        assert capsys.readouterr().out == ""
        ChosenLayers(cost, folder, yes=True).check()
        assert capsys.readouterr().out == f"{said}\n"
        with pytest.raises(InputError, match="no layer matches"):
            ChosenLayers(run_cost(layers="none"), folder, yes=True).before_anything()

    def test_all_layers_are_counted_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("producer.cost.MAX_PASSES", 20 * SETTINGS.num_steps)
        with pytest.raises(InputError, match="--method sketch"):
            ChosenLayers(run_cost(), CalibFolder(tmp_path), yes=False).before_anything()

    @pytest.mark.slow
    def test_a_run_ends_after_its_first_image(self, tmp_path: Path) -> None:
        fleet = Fleet(tmp_path, None, tmp_path / "cache")
        said = fleet.producer(
            "run", "--model", "tiny-sd3", "--num-images", "4", "--prompt-csv", "prompts.csv",
            "--num-steps", "400", "--step-stride", "1", "--layers", "*fc*,*proj*", code=2,
        )  # fmt: skip
        assert UNCOUNTED in said
        assert "give --yes if you mean it" in said
        assert 1 <= len(CalibFolder(fleet.calib).records.ids()) < 4


def test_ranges_add_up() -> None:
    assert Range(1, 2) + Range(3, 5) == Range(4, 7)
