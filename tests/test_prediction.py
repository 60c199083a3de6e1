"""Predicted errors: right on average, with an interval that holds."""

from pathlib import Path

import numpy as np
import pytest

from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import RunFile
from producer.plan.prediction import another_picture, predict, read_predictions
from producer.plan.write import write_plan, write_predictions
from producer.report.write import write_report
from shared.kinds.confirm import ConfirmShard
from tests.planned import card, plan_of
from tests.tasks import SETTINGS

SINGLE = np.linspace(0.2, 3.0, 60)
"""Size of each layer's single error."""


def shards(images: int, seed: int, *, common: float = 0.0, scatter: float = 0.5) -> list[ConfirmShard]:
    """Two variants, the second with a hundredth of the squared error.

    `common` is how far the layers of an image err in one direction; each image has a scale of its own.
    """
    rng = np.random.default_rng(seed)
    found = []
    for image in range(images):
        scale = np.exp(rng.normal(0, scatter))
        own, shared = rng.normal(size=len(SINGLE)), rng.normal()
        products = scale * SINGLE * (np.sqrt(1 - common) * own + np.sqrt(common) * shared)
        found.append(
            ConfirmShard(
                image_index=np.array(image),
                products=np.stack([products, products / 10]),
                squared_reference=np.array(1e5),
                output_size=np.array(100),
            )
        )
    return found


def true_error(common: float) -> float:
    """The median image's relative squared error: over probes, of layers with a common part."""
    return float(((1 - common) * (SINGLE**2).sum() + common * SINGLE.sum() ** 2) / 1e5)


@pytest.mark.parametrize("common", [0.0, 0.02])
def test_predictions_are_right_on_average(common: float) -> None:
    first = [predict(shards(32, seed, common=common), ["plan", "uniform"])[0] for seed in range(30)]
    errors = np.array([prediction.median_squared_error for prediction in first])
    assert np.median(errors) == pytest.approx(true_error(common), rel=0.15)
    joint = np.mean([prediction.joint for prediction in first])
    assert joint == pytest.approx(true_error(common) * 1e5 / (SINGLE**2).sum(), rel=0.15)


def test_a_variant_of_which_one_layer_is_all_is_predicted_as_well() -> None:
    """Its products are one probe's, and their median is half of their mean."""
    found = []
    for seed in range(24):
        few = shards(32, seed, scatter=0.1)
        for shard in few:
            shard.products[0, -1] *= 30
        found.append(predict(few, ["plan", "uniform"])[0].median_squared_error)
    truth = ((SINGLE**2).sum() + (900 - 1) * SINGLE[-1] ** 2) / 1e5
    assert np.mean(found) == pytest.approx(truth, rel=0.2)


def test_the_interval_holds_as_often_as_it_says() -> None:
    truth = -10 * np.log10(true_error(0.0))
    first = [predict(shards(24, seed), ["plan", "uniform"])[0] for seed in range(50)]
    inside = [prediction.median_db.low <= truth <= prediction.median_db.high for prediction in first]
    assert 0.82 <= np.mean(inside) <= 1.0


def test_each_variant_has_its_own_prediction() -> None:
    plan, uniform = predict(list(reversed(shards(8, 1))), ["plan", "uniform 4/64"])
    assert (plan.name, uniform.name) == ("plan", "uniform 4/64")
    assert plan.image_index == tuple(range(8))
    assert uniform.median_db.value == pytest.approx(plan.median_db.value + 20)
    assert plan.median_db.low < plan.median_db.value < plan.median_db.high
    assert plan.median_squared_error == pytest.approx(np.median(plan.squared_error))


def test_one_image_and_a_variant_without_any_change_do() -> None:
    (one,) = shards(1, 1)
    changed, same = predict(
        [
            ConfirmShard(
                image_index=one.image_index,
                products=one.products * np.array([[1.0], [0.0]]),
                squared_reference=one.squared_reference,
                output_size=one.output_size,
            )
        ],
        ["plan", "original"],
    )
    assert changed.mean_db.low == changed.mean_db.value == changed.mean_db.high
    assert same.median_squared_error == 0
    assert same.median_db.value == 200


def test_images_that_became_another_picture_are_counted() -> None:
    plan, _ = predict(shards(8, 1), ["plan", "uniform"])
    measured = plan.median_squared_error * np.array([0.5, 1, 3, 5, 40])
    assert another_picture(plan, measured) == pytest.approx(0.4)


def test_predictions_are_written_beside_each_plan_and_told_in_the_report(tmp_path: Path) -> None:
    folder, predictions = CalibFolder(tmp_path), predict(shards(8, 1), ["plan", "uniform 4/64"])
    folder.write_run(RunFile(settings=SETTINGS, prompts=("a",), store_id="relay", store=None))
    folder.write_model(card())
    plan = plan_of(card())
    write_plan(folder, plan)
    assert "which is too good" in write_report(folder).read_text()
    written = tmp_path / "confirms" / "x" / "prediction.json"
    assert write_predictions(folder, written.parent, [plan.id, "gone"], predictions) == written
    assert read_predictions(written) == predictions
    assert read_predictions(folder.plan_path(plan.id).with_name("prediction.json")) == predictions
    assert read_predictions(tmp_path / "missing.json") == []
    text = write_report(folder).read_text().replace("<wbr>", "")
    assert f"<td>{predictions[0].median_db.value:.1f}</td>" in text
    for words in ("uniform 4/64", "final_layer.linear", "--target-bpw 5", plan.fingerprint):
        assert words in text
