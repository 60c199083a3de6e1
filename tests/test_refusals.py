"""What the producer refuses before anything is written: stores that are not there, folders of others."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from producer.cli import main


class Producer:
    """The command, in a folder with two prompts and on a Redis of its own."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder, self.redis_url = folder, redis_url
        self.calib = folder / "calib"
        (folder / "prompts.csv").write_text("prompt\na red circle\na blue square\n")

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
        small = ("--model", "tiny-sd3", "--num-images", "2", "--num-steps", "3", "--prompt-csv", prompts)
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


def test_sensitivity_needs_the_store_of_its_run(producer: Producer) -> None:
    producer.enqueue("--store", producer.store("share"))
    assert "was enqueued with --store" in producer("enqueue-sensitivity", code=2)


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
