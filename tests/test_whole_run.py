"""What `producer run` checks before it works for hours."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from producer.cli import main
from producer.folder.calib_folder import CalibFolder
from producer.folder.run_file import RunFile
from producer.whole_run import prompts_for_a_proof
from shared.exported import ExportConfig, Origin, encode_indented
from tests.tasks import SETTINGS


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("notes.txt", b"", "is not empty, and is no earlier export"),
        (
            "config.json",
            encode_indented(ExportConfig(bitfleet=Origin(run=SETTINGS, fingerprint="f" * 64, plan_id="p"))),
            "holds a model of another run; give --export another folder",
        ),
    ],
)
def test_a_folder_that_the_model_may_not_go_to_is_refused_at_once(
    name: str, content: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(content)
    folders = ("--calib-dir", str(tmp_path / "calib"), "--export", str(tmp_path / "out"))
    result = CliRunner().invoke(main, ["run", "--model", "tiny-sd3", "--num-images", "1", *folders])
    assert (result.exit_code, says in result.output) == (2, True), result.output
    assert not (tmp_path / "calib/run.json").exists()


def test_without_prompts_for_a_proof_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.csv"
    # Of the eleven one is there twice, and two are of the levels.
    path.write_text("prompt\n" + "".join(f"picture {n}\n" for n in (*range(10), 3)))
    prompts = tuple(f"picture {n}" for n in range(4))
    CalibFolder(tmp_path).write_run(RunFile(settings=SETTINGS, prompts=prompts, store_id="relay", store=None))
    source = {"prompt_csv": path, "prompt_column": "prompt"}
    assert prompts_for_a_proof(tmp_path, 2, 96, **source) == 96
    assert prompts_for_a_proof(tmp_path, 3, 96, **source) == 0
    assert "it needs 8 prompts beyond the 3 of the levels" in capsys.readouterr().out
    assert prompts_for_a_proof(tmp_path, 3, 7, **source) == 7
