"""From `producer enqueue-levels` to a plan and its prediction, through a real Redis; fakes do the work."""

import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from redis import Redis

from producer.cli import main
from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import RunFile
from producer.kinds.registry import parts_of
from producer.plan.prediction import read_predictions
from shared.errors import InputError
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.kinds.confirm import ConfirmShard, ConfirmTask
from shared.kinds.kind import Task
from shared.kinds.levels import LevelsTask
from shared.kinds.weights import WeightsTask
from shared.packed_arrays import PackedArrays
from shared.plan import decode_variants
from shared.plan_file import read_plan
from shared.stores.relay_store import RelayStore
from tests.fleet import Fleet
from tests.planned import CANDIDATES, card, levels_of, prompt_csv, weights_of
from tests.tasks import SETTINGS, record_of

CARD = card()


class Bench:
    """A folder whose run wants no images, a relay, and workers that are fakes."""

    def __init__(self, root: Path, redis: Redis, redis_url: str) -> None:
        self.root, self.url = root, redis_url
        self.store, self.queue = RelayStore(redis), TaskQueue(queue_name("relay"), redis)
        self.folder = CalibFolder(root / "calib")
        self.folder.write_run(RunFile(settings=SETTINGS, prompts=(), store_id="relay", store=None))
        self.folder.write_model(CARD)
        self.prompts = prompt_csv(root / "prompts.csv")

    def call(self, command: str, *arguments: str, code: int = 0) -> str:
        where = ["--calib-dir", str(self.folder.root)]
        if command != "plan":
            where += ["--redis-url", self.url]
        if command in ("plan", "enqueue-levels"):
            where += ["--prompt-csv", str(self.prompts)]
        result: Result = CliRunner().invoke(main, [command, *where, *arguments])
        assert result.exit_code == code, result.output
        return result.output

    def tasks(self) -> list[Task]:
        """All tasks that are queued."""
        queued = set(self.queue.in_flight().queued)
        return [task for part in parts_of(self.folder) for task in part.tasks() if task.id in queued]

    def finish(self, task: Task, shard: PackedArrays) -> None:
        """Leave what a worker would, and take the job out of the queue."""
        data = shard.to_bytes()
        self.queue.withdraw([task.id])
        assert self.store.put(record_of(task, data), data) == "stored"

    def work(self) -> None:
        for task in self.tasks():
            self.finish(task, self.shard(task))

    def shard(self, task: Task) -> PackedArrays:
        match task:
            case WeightsTask():
                return weights_of(CARD, task.candidates)
            case LevelsTask():
                return levels_of(CARD, task.image_index, plain=task.levels.candidates)
            case ConfirmTask():
                variants = decode_variants(self.store.blob(task.confirm.variants_sha256))
                rng = np.random.default_rng(task.image_index)
                return ConfirmShard(
                    image_index=np.array(task.image_index),
                    products=rng.normal(size=(len(variants), len(CARD.layers))),
                    squared_reference=np.array(1e4),
                    output_size=np.array(100),
                )
        raise AssertionError(task)


@pytest.fixture
def bench(tmp_path: Path, redis: Redis, redis_url: str) -> Bench:
    return Bench(tmp_path, redis, redis_url)


def test_from_levels_to_a_plan_and_its_prediction(bench: Bench) -> None:
    output = bench.call("enqueue-levels", "--images", "8")
    assert "2, 3, 4, 5, 6, 8 bits in groups of 32, 64, 128" in output
    assert "8 images enqueued" in output
    assert {type(task) for task in bench.tasks()} == {WeightsTask, LevelsTask}
    assert "3 images enqueued, 8 already queued" in bench.call("enqueue-levels", "--images", "11")
    assert "11 already queued" in bench.call("enqueue-levels", "--images", "8"), "what was wanted is wanted"
    assert "not collected yet" in bench.call("plan", "--target-bpw", "4.5", code=2)
    bench.work()
    output = bench.call("collect")
    assert "weights" in output
    assert "11 of 11" in output
    assert list(bench.folder.root.glob("levels/*/levels.csv"))
    bench.call("plan", "--target-bpw", "4.5", "--out", str(bench.root / "a.json"))
    bench.call("plan", "--target-bpw", "3.5", "--out", str(bench.root / "b.json"))

    output = bench.call("enqueue-confirm", "--plan", str(bench.root / "a.json"))
    assert "plan, uniform 3/32, uniform 3/64, uniform 4/128 on 32 prompts" in output
    (confirms,) = bench.folder.confirms.all()
    digest = confirms.require_request().settings.variants_sha256
    bench.store.discard_blob(digest)
    bench.call("collect", code=3)
    assert bench.store.has_blob(digest), "as after Redis was wiped"
    bench.work()
    output = bench.call("collect")
    assert "32 of 32" in output
    assert "report.html" in output
    assert not bench.store.has_blob(digest)
    (plan_path,) = bench.folder.root.glob("plans/*/prediction.json")
    predictions = read_predictions(plan_path)
    assert [prediction.name for prediction in predictions] == list(confirms.require_request().names)
    assert predictions[0].images == 32

    both = ["--plan", str(bench.root / "a.json"), "--plan", str(bench.root / "b.json")]
    assert "32 images enqueued" in bench.call("enqueue-confirm", *both)
    requests = [part.require_request() for part in bench.folder.confirms.all()]
    assert max(len(request.plans) for request in requests) == 2


def test_weight_errors_alone(bench: Bench) -> None:
    output = bench.call("enqueue-levels", "--images", "0", "--bits", "1,4", "--group-sizes", "64")
    assert "1, 4 bits in groups of 64" in output
    assert [type(task) for task in bench.tasks()] == [WeightsTask]
    bench.work()
    assert "weights" in bench.call("collect")
    assert "there is no levels" in bench.call("plan", "--target-bpw", "4.5", code=2)


def test_what_does_not_fit_the_model_is_dropped(bench: Bench) -> None:
    bench.call("enqueue-levels", "--images", "1")
    (weights,) = [task for task in bench.tasks() if isinstance(task, WeightsTask)]
    (levels,) = [task for task in bench.tasks() if isinstance(task, LevelsTask)]
    bench.finish(weights, weights_of(CARD, CANDIDATES[:-1]))
    bench.finish(levels, levels_of(CARD, 0, plain=CANDIDATES[:1]))
    output = bench.call("collect", code=3)
    assert "weight errors of other candidates than were asked for" in output
    assert "levels with other candidates than were asked for" in output
    assert not list(bench.folder.root.glob("*/*/records/*.json"))
    assert {task.id for task in bench.tasks()} == {weights.id, levels.id}, "enqueued again"


def test_the_run_can_not_change_once_levels_are_asked_for(bench: Bench) -> None:
    bench.call("enqueue-levels", "--images", "2")
    changed = msgspec.structs.replace(SETTINGS, num_steps=SETTINGS.num_steps + 1)
    with pytest.raises(InputError, match=r"differs in num_steps \(4, now 5\); use another --calib-dir"):
        bench.folder.check_run(RunFile(settings=changed, prompts=(), store_id="relay", store=None))


def test_other_prompts_than_before_are_refused(bench: Bench) -> None:
    bench.call("enqueue-levels", "--images", "2")
    bench.prompts.write_text("prompt\nanother\nand another\n")
    assert "was asked for with other prompts" in bench.call("enqueue-levels", "--images", "2", code=2)


def test_bytes_that_the_model_does_not_take_are_dropped(bench: Bench) -> None:
    bench.call("enqueue-levels", "--images", "0")
    (task,) = bench.tasks()
    wrong = weights_of(CARD)
    wrong.stored_bytes[2, 3] -= 8
    bench.finish(task, wrong)
    assert "block.0.k at 3/32 does not take" in bench.call("collect", code=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group-sizes", "48"], "MLX offers groups of 32,64,128"),
        (["--bits", "7"], "MLX can't quantize to 7 bits"),
        (["--images", "300"], "has 200 prompts, 300 images need as many"),
    ],
)
def test_bad_options_are_told(bench: Bench, arguments: list[str], message: str) -> None:
    assert message in bench.call("enqueue-levels", *arguments, code=2)


def test_a_lost_request_stops_nothing_else(bench: Bench) -> None:
    bench.call("enqueue-levels", "--images", "2")
    bench.work()
    bench.call("collect")
    (levels,) = bench.folder.levels.all()
    levels.request_path.unlink()
    output = bench.call("collect", code=3)
    assert "request.json is missing" in output
    assert "weights" in output


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path / "user", redis_url, tmp_path / "cache")
    yield fleet
    fleet.close()


@pytest.mark.slow
def test_real_workers_make_a_plan_and_predict_its_error(fleet: Fleet) -> None:
    prompts = prompt_csv(fleet.folder / "prompts.csv", 14)
    fleet.enqueue(1, "--num-steps", "2")
    few = ("--bits", "2,4,8", "--group-sizes", "32,64", "--prompt-csv", str(prompts))
    fleet.producer("enqueue-levels", "--images", "2", *few)
    worker = fleet.start("worker", "start")
    assert "2 of 2" in fleet.producer("collect", "--wait")
    sets = ("--prompt-csv", str(prompts), "--choosing", "2", "--prediction", "1")
    output = fleet.producer("plan", "--like", "uniform:4", *sets, "--out", "plan.json")
    assert "2 for the scores, 2 for choosing, 1 for the prediction, 9 for the proof" in output
    plan = read_plan(fleet.folder / "plan.json")
    card = CalibFolder(fleet.calib).require_model()
    assert plan.fingerprint == card.fingerprint
    assert set(plan.layers) | set(plan.kept) == {layer.path for layer in card.layers}
    assert len(set(plan.layers.values())) > 1
    fleet.producer("enqueue-confirm", "--plan", "plan.json")
    fleet.producer("collect", "--wait")
    worker.send_signal(signal.SIGTERM)
    predictions = read_predictions(fleet.calib / "plans" / plan.id / "prediction.json")
    assert predictions[0].name == "plan"
    errors = {prediction.name: np.array(prediction.squared_error) for prediction in predictions}
    assert np.isfinite(errors["plan"]).all()
    assert (errors["plan"] > 0).all()
