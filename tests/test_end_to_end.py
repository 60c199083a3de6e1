"""The main job as a user does it: real Redis, real workers, DiffusionKit's loaders; and interruptions."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redis import Redis

from producer.folder.kept_folder import KeptFolder
from producer.folder.verification_request import VerificationRequest
from producer.jobs.redis_server import RedisServer
from producer.proof.verdict import decode_verdict
from shared.jobs.task_queue import queue_name
from shared.kinds.verification import VerificationShard
from shared.layout.reader import read_manifest, read_samples
from tests.fleet import PROMPTS, Fleet, wait_for
from tests.notebooks import execute
from tests.readme import demo_block, is_progress, shape
from worker.load import load_quantized

pytestmark = pytest.mark.slow

QKV = "multimodal_transformer_blocks.2.*_proj"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def alone(tmp_path: Path, cache: Path) -> Iterator[Fleet]:
    """A machine without a Redis."""
    fleet = Fleet(tmp_path, None, cache)
    yield fleet
    fleet.close()


@pytest.fixture
def fleet(tmp_path: Path, cache: Path) -> Iterator[Fleet]:
    """A machine that knows a Redis."""
    with RedisServer(tmp_path / "redis") as server:
        fleet = Fleet(tmp_path, server.url, cache)
        yield fleet
        fleet.close()


def redis_of(fleet: Fleet) -> Redis:
    assert fleet.redis_url
    return Redis.from_url(fleet.redis_url)


def test_calibrate_measure_collect_report(fleet: Fleet) -> None:
    # Settings may change until something is collected.
    assert "2 images enqueued" in fleet.enqueue(2, "--seed", "7")
    assert "2 images enqueued" in fleet.enqueue()
    assert redis_of(fleet).llen(f"rq:queue:{queue_name('relay')}") == 2
    assert "2 already queued" in fleet.enqueue()
    assert "calibration: 0 of 2, 2 missing" in fleet.producer("collect", code=3)
    fleet.work("--workers", "2")
    assert "calibration: 2 of 2" in fleet.producer("collect")
    before = fleet.finished_at()
    with pytest.raises(AssertionError, match="differs in seed"):
        fleet.enqueue(2, "--seed", "7")

    manifest = read_manifest(fleet.calib)
    assert (manifest.n_completed, manifest.num_steps) == (2, 3)
    samples = list(read_samples(fleet.calib))
    places = [(sample.image_index, sample.step_index) for sample in samples]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert samples[0].x.shape == (1, 8, 8, 16)
    assert (fleet.calib / "previews/image-00001.png").read_bytes().startswith(b"\x89PNG")

    # More of the same run; what is there stays.
    assert "1 image enqueued, 2 collected" in fleet.enqueue(3)
    output = fleet.producer(
        "enqueue-sensitivity", "--layers", QKV, "--bits", "4", "--max-images", "3", code=2
    )
    assert "not collected yet" in output
    output = fleet.producer("enqueue-sensitivity", "--layers", QKV, "--bits", "4,8", "--max-images", "2")
    # text q, k, v and image q, k, v, o: the last text block has no o_proj.
    assert "7 layers at 4, 8 bits" in output
    assert "14 tasks enqueued" in output
    # The third image's job is gone, and the sample set, too; the folder knows of both.
    redis_of(fleet).flushall()
    fleet.producer("collect", code=3)
    fleet.work()
    output = fleet.producer("collect")
    (results,) = fleet.calib.glob("sensitivity/*/results.json")
    content = fleet.json(str(results.relative_to(fleet.calib)))
    assert content["complete"] is True
    measured = {(pair["layer"], pair["bits"]): pair for pair in content["measurements"]}
    assert len(measured) == 14
    dead = {layer for (layer, _), pair in measured.items() if pair["dead"]}
    assert dead == {"multimodal_transformer_blocks.2.text_transformer_block.attn.q_proj"}
    for layer, bits in measured:
        if bits == 4 and layer not in dead:
            at4, at8 = (measured[layer, b]["buckets"]["all"]["relative_error"] for b in (4, 8))
            assert at4 > 3 * at8 > 0
    assert "<html" in (fleet.calib / "report.html").read_text()
    assert before.items() <= fleet.finished_at().items()
    assert fleet.producer("status").count("0 bytes") == 1


def test_whatever_happens_between_the_end_is_the_same(fleet: Fleet) -> None:
    """Enqueue twice, collect twice, wipe Redis, alter and truncate shards: nothing lost, nothing doubled."""
    redis = redis_of(fleet)
    fleet.enqueue(4)
    redis.flushall()
    assert "4 missing" in fleet.producer("collect", code=3)
    fleet.work()
    fleet.enqueue(4)
    run = fleet.json("run.json")
    keys = sorted(redis.keys("bitfleet:shard:*"))
    assert len(keys) == 4
    redis.setrange(keys[1], 500, b"altered")
    redis.set(keys[2], redis.get(keys[2])[:1000])
    output = fleet.producer("collect", code=3)
    assert "image 1: dropped, to be computed again" in output
    assert "image 2: dropped, to be computed again" in output
    assert read_manifest(fleet.calib).n_completed == 2
    # A sample that somebody deletes is drawn again, and is the same one.
    path = fleet.calib / "samples/image-00003-step-001.npz"
    original = path.read_bytes()
    path.unlink()
    assert "is gone; the image is to be drawn again" in fleet.producer("collect", code=3)
    assert read_manifest(fleet.calib).n_completed == 1
    before = fleet.finished_at()
    fleet.work()
    redis.delete(*redis.keys("rq:*"))
    fleet.producer("collect")
    fleet.producer("collect")
    assert fleet.json("run.json") == run
    manifest = read_manifest(fleet.calib)
    assert manifest.n_completed == 4
    assert manifest.sample_files == tuple(
        f"samples/image-0000{image}-step-00{step}.npz" for image in range(4) for step in range(3)
    )
    assert path.read_bytes() == original
    assert before.items() <= fleet.finished_at().items()


def test_run_is_interrupted_and_goes_on(alone: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (
        "run", "--model", "tiny-sd3", "--num-images", "3", "--num-steps", "4", "--prompt-csv", "prompts.csv",
        "--bits", "4", "--layers", QKV, "--max-images", "2", "--max-prompts", "1", "--rivals", "uniform",
    )  # fmt: skip
    process = alone.start("producer", *arguments)
    wait_for(lambda: any(alone.calib.glob("records/*.json")))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "give the same command again to continue" in output
    assert "Traceback" not in output
    # What images will take is said while some are missing.
    disk = {shape(line) for line in output.splitlines() if line.startswith("disk: ")}
    before = alone.finished_at()

    process = alone.start("producer", *arguments)
    wait_for(lambda: any(alone.calib.glob("sensitivity/*/records/*.json")))
    process.kill()
    # Not until the end of its output: its worker holds that, too, until it has handed its job back.
    process.wait(timeout=60)
    middle = alone.finished_at()
    assert before.items() <= middle.items()

    output = alone.producer(*arguments)
    assert "report: " in output
    assert middle.items() <= alone.finished_at().items()
    assert "7 of 7" in output
    assert "uniform" in output.split("1 prompts are too few to show anything")[0].splitlines()[-1]
    # The README shows what another model's run prints: the same lines, but for figures, ids and names.
    printed = {shape(line) for line in output.splitlines() if not is_progress(line)}
    assert printed | disk == {shape(line) for line in demo_block()}
    weights = alone.calib / "export/model.safetensors"
    written = weights.stat()
    again = alone.producer(*arguments)
    assert "0 tasks enqueued, 7 collected" in again
    assert weights.stat() == written
    assert len(list(read_samples(alone.calib))) == 12
    assert all(np.isfinite(sample.x).all() for sample in read_samples(alone.calib))
    check_export(alone)
    # From a folder beside calibration_data, as from notebooks/.
    (alone.folder / "notebooks").mkdir()
    shown = execute(alone.folder / "notebooks", alone.environment, monkeypatch)
    assert shown["in results.csv"] > 0
    assert shown["by hand"] == pytest.approx(shown["in results.csv"], rel=1e-4)


def check_export(fleet: Fleet) -> None:
    """What was exported is the winner, and draws its picture of the proof to the last bit."""
    (folder,) = fleet.calib.glob("verification/*")
    verdict = decode_verdict((folder / "verification.json").read_bytes())
    (path,) = folder.glob("shards/*.npz")
    shard = VerificationShard.from_bytes(path.read_bytes())
    names = KeptFolder(folder, VerificationRequest).require_request().names
    (worst,) = verdict.worst_prompts
    assert worst.prompt == PROMPTS[3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(fleet.cache))
        drawn = load_quantized(fleet.calib / "export").draw(worst.prompt, seed=worst.seed)
    assert drawn == shard.pictures()[names.index(verdict.winner)]
    assert f"**{verdict.winner}**" in (fleet.calib / "export/README.md").read_text()


def test_folder_store(fleet: Fleet) -> None:
    store = ("--store", str(fleet.folder / "share"))
    fleet.enqueue(1, *store)
    assert "jobs wait for workers with store" in fleet.work()
    fleet.work(*store)
    assert list((fleet.folder / "share").rglob("*.npz"))
    wrong = ("--store", str(fleet.folder / "other"))
    fleet.enqueue(1, *wrong, "--calib-dir", "elsewhere")
    assert "give the same" in fleet.producer("collect", *wrong, code=2)
    # Without the option it is that of the run.
    assert "calibration: 1 of 1" in fleet.producer("collect")
    assert not list((fleet.folder / "share").rglob("*.npz"))
    assert "is no shard store" in fleet.run("worker", "start", "--store", str(fleet.folder), code=2)


def test_a_model_that_this_machine_can_not_hold_stops_no_other_run(fleet: Fleet) -> None:
    fleet.producer(
        "enqueue-calibration", "--model", "demo", "--num-images", "1", "--num-steps", "2",
        "--prompt-csv", "prompts.csv", "--calib-dir", "large",
    )  # fmt: skip
    fleet.enqueue(1)
    # Enough for the one, not for the other.
    output = fleet.run("worker", "start", "--burst", "--memory-limit", "12MB", code=2)
    assert output.count("this machine can't do the images of") == 1
    assert re.search(r"demo for [a-z ]+ needs ", output)
    assert "this machine offers 12 MB; --memory-limit (or BITFLEET_MEMORY_LIMIT) to try" in output
    assert "calibration: 1 of 1" in fleet.producer("collect")
    assert "0 of 1, 1 missing (1 queued" in fleet.producer("collect", "--calib-dir", "large", code=3)
