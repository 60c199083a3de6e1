"""Enqueueing and collecting by the command: what goes on, and what is refused in one line."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from producer.cli import main
from producer.folder.calib_folder import CalibFolder
from producer.folder.tasks import calibration_tasks
from shared.jobs.connection import connect
from shared.jobs.task_queue import TaskQueue, queue_name
from shared.stores.folder_store import FolderStore
from shared.stores.relay_store import RelayStore
from shared.stores.store import ShardStore
from tests.calibration_shards import calibration_shard
from tests.tasks import record_of


class Producer:
    """The command, in a folder with two prompts and on a Redis of its own."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder, self.redis_url = folder, redis_url
        self.calib = folder / "calib"
        self.write_prompts("a red circle", "a blue square")

    def write_prompts(self, *prompts: str) -> None:
        (self.folder / "prompts.csv").write_text("\n".join(["prompt", *prompts, ""]))

    def __call__(self, command: str, *arguments: str, code: int) -> str:
        given = [command, "--redis-url", self.redis_url, *arguments]
        if "--calib-dir" not in arguments:
            given += ["--calib-dir", str(self.calib)]
        result = CliRunner().invoke(main, given)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.output

    def enqueue(self, *arguments: str, code: int = 0) -> str:
        prompts = str(self.folder / "prompts.csv")
        small = ("--model", "tiny-sd3", "--num-steps", "3", "--prompt-csv", prompts)
        if "--num-images" not in arguments:
            small += ("--num-images", "2")
        return self("enqueue-calibration", *small, *arguments, code=code)

    def store(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture
def producer(tmp_path: Path, redis_url: str) -> Producer:
    return Producer(tmp_path, redis_url)


@pytest.mark.parametrize("command", ["status", "collect", "enqueue-sensitivity"])
def test_only_enqueueing_a_run_makes_a_folder_a_store(producer: Producer, command: str) -> None:
    producer.enqueue("--store", producer.store("share"))
    assert "is no shard store" in producer(command, "--store", producer.store("shaer"), code=2)
    assert not Path(producer.store("shaer")).exists()


def test_a_share_that_is_not_mounted_does_not_become_a_second_store(producer: Producer) -> None:
    share, away = Path(producer.store("share")), Path(producer.store("away"))
    producer.enqueue("--store", str(share))
    share.rename(away)
    assert "is the share mounted" in producer.enqueue("--store", str(share), code=2)
    assert not share.exists()
    away.rename(share)
    assert "2 already queued" in producer.enqueue("--store", str(share))


def test_the_store_is_that_of_the_run_and_no_other(producer: Producer) -> None:
    producer.enqueue("--store", producer.store("other"), "--calib-dir", str(producer.folder / "elsewhere"))
    producer.enqueue("--store", producer.store("share"))
    assert "are not collected yet" in producer("enqueue-sensitivity", code=2)
    wrong = producer("enqueue-sensitivity", "--store", producer.store("other"), code=2)
    assert "was enqueued with --store" in wrong


@pytest.mark.parametrize("command", ["enqueue-calibration", "run"])
def test_a_folder_that_cannot_be_written_is_named_with_its_cure(producer: Producer, command: str) -> None:
    (producer.folder / "file").touch()
    calib = str(producer.folder / "file/calib")
    prompts = str(producer.folder / "prompts.csv")
    options = ("--model", "tiny-sd3", "--num-images", "1", "--prompt-csv", prompts, "--calib-dir", calib)
    output = producer(command, *options, code=2)
    assert output == (
        f"Error: {calib} can't be written: Not a directory; nothing that was finished is lost: mend that, "
        "or name another folder with --calib-dir\n"
    )


def test_a_run_goes_on_with_more_prompts(producer: Producer) -> None:
    def run_id(output: str) -> str:
        return output.split()[1]

    first = producer.enqueue()
    assert "2 images enqueued" in first
    producer.write_prompts("a red circle", "a blue square", "a green triangle")
    again = producer.enqueue()
    assert "0 images enqueued, 2 already queued" in again
    more = producer.enqueue("--num-images", "3")
    assert "1 image enqueued, 2 already queued" in more
    assert run_id(first) == run_id(again) == run_id(more)
    # Fewer are no other run either: what was asked for stays asked for.
    producer.write_prompts("a red circle")
    assert "0 images enqueued, 3 already queued" in producer.enqueue("--num-images", "1")
    run = CalibFolder(producer.calib).require_run()
    assert run.prompts == ("a red circle", "a blue square", "a green triangle")


def test_other_prompts_or_settings_are_another_run(producer: Producer) -> None:
    before = producer.enqueue().split()[1]
    producer.write_prompts("a red circle", "a blue triangle", "a green triangle")
    assert producer.enqueue().split()[1] != before
    producer.write_prompts("a red circle", "a blue square")
    assert producer.enqueue().split()[1] == before
    assert producer.enqueue("--seed", "1").split()[1] != before


def finish(producer: Producer, index: int, store: ShardStore) -> str:
    """Finish an image of the folder's run, as a worker would; return its task's id."""
    task = calibration_tasks(CalibFolder(producer.calib).require_run())[index]
    data = calibration_shard(task.image_index, steps=3).to_bytes()
    assert store.put(record_of(task, data), data) == "stored"
    TaskQueue(queue_name(store.id), connect(producer.redis_url)).withdraw([task.id])
    return task.id


@pytest.mark.parametrize("where", ["relay", "share"])
def test_finished_images_of_other_settings_are_dropped_only_when_told_so(
    producer: Producer, where: str
) -> None:
    share = producer.store("share")
    options = () if where == "relay" else ("--store", share)
    before = producer.enqueue(*options).split()[1].rstrip(":")
    redis = connect(producer.redis_url)
    store = RelayStore(redis) if where == "relay" else FolderStore.open(share)
    done = finish(producer, 0, store)
    refused = producer.enqueue("--seed", "1", *options, code=2)
    assert f"1 images of run {before} are finished and wait in " in refused
    assert "these settings differ in seed (0, now 1): use another --calib-dir to keep both" in refused
    run = CalibFolder(producer.calib).require_run()
    assert run.settings.id == before
    assert store.record_ids(before) == {done}
    assert len(TaskQueue(queue_name(store.id), redis).in_flight().queued) == 1
    told = producer.enqueue("--seed", "1", "--drop-finished", *options)
    assert f"1 finished images of run {before} were dropped" in told
    assert "2 images enqueued" in told
    assert store.record_ids(before) == set()
    assert len(TaskQueue(queue_name(store.id), redis).in_flight().queued) == 2
    if isinstance(store, RelayStore):
        assert store.used_bytes == 0


def test_a_run_with_collected_images_can_be_extended(producer: Producer) -> None:
    producer.enqueue()
    store = RelayStore(connect(producer.redis_url))
    finish(producer, 0, store)
    producer("collect", code=3)
    producer.write_prompts("a red circle", "a blue square", "a green triangle")
    assert "1 image enqueued, 1 already queued or running, 1 collected" in producer.enqueue(
        "--num-images", "3"
    )
    for index in (1, 2):
        finish(producer, index, store)
    assert "calibration: 3 of 3" in producer("collect", code=0)
    assert "0 images enqueued, 3 collected" in producer.enqueue("--num-images", "3")


def test_a_relative_store_is_the_same_from_another_folder(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(producer.folder)
    producer.enqueue("--store", "share")
    share = str(producer.folder / "share")
    (producer.folder / "elsewhere").mkdir()
    monkeypatch.chdir(producer.folder / "elsewhere")
    # run.json says where it is.
    assert "2" in producer("status", code=0)
    assert "are not collected yet" in producer("enqueue-sensitivity", code=2)
    assert f"{Path.cwd() / 'share'} is no shard store" in producer("status", "--store", "share", code=2)
    assert "2" in producer("status", "--store", share, code=0)


def test_a_file_that_can_not_be_read_is_named_and_the_rest_is_collected(producer: Producer) -> None:
    share = producer.folder / "share"
    producer.enqueue("--store", str(share))
    run = CalibFolder(producer.calib).require_run()
    store = FolderStore.open(str(share))
    for task in calibration_tasks(run):
        data = calibration_shard(task.image_index, steps=3).to_bytes()
        assert store.put(record_of(task, data), data) == "stored"
    (broken,) = share.glob("*/*-00000.json")
    record = broken.read_bytes()
    broken.unlink()
    broken.mkdir()
    withdrawn = [task.id for task in calibration_tasks(run)]
    TaskQueue(queue_name(store.id), connect(producer.redis_url)).withdraw(withdrawn)
    output = producer("collect", "--wait", "--store", str(share), code=3)
    assert output.count(f"{broken} in store {share} can't be read: Is a directory; mend that") == 1
    assert "calibration: 1 of 2, 1 missing (1 can't be read from the store)" in output
    broken.rmdir()
    broken.write_bytes(record)
    assert "calibration: 2 of 2" in producer("collect", "--store", str(share), code=0)
