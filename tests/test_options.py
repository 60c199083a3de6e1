"""What holds for every option: the environment, short spellings, completion, colours, silence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from redis import Redis

import producer.cli
import worker.cli
from producer.console import PlainConsole
from shared.cli import is_quiet
from tests.folders import Folder

ROOT = Path(__file__).parent.parent
MAINS = {"producer": producer.cli.main, "worker": worker.cli.main}


def invoke(*arguments: str, program: str = "producer", **environment: str) -> Result:
    # COLUMNS: a message is not folded.
    return CliRunner().invoke(
        MAINS[program], arguments, prog_name=program, env={"COLUMNS": "200", **environment}
    )


@pytest.mark.parametrize("program", MAINS)
def test_every_option_can_be_set_in_the_environment(program: str) -> None:
    """A value of each is a value on the command line: nonsense is refused by the option's name."""
    for name, command in MAINS[program].commands.items():
        needed = [
            word
            for each in command.params
            if each.required
            for word in ([each.opts[0]] if isinstance(each, click.Option) else []) + ["x"]
        ]
        for parameter in command.params:
            if isinstance(parameter, click.Option) and isinstance(parameter.type, click.IntRange):
                variable = f"BITFLEET_{name}_{parameter.name}".upper().replace("-", "_")
                result = invoke(name, *needed, program=program, **{variable: "nonsense"})
                assert result.exit_code == 2
                assert "nonsense" in result.output.splitlines()[-1], (variable, result.output)


def test_the_command_line_counts_before_the_environment(tmp_path: Path) -> None:
    set_in = {"BITFLEET_REPORT_CALIB_DIR": "long", "BITFLEET_CALIB_DIR": "short"}
    assert invoke("report", "--calib-dir", str(tmp_path / "given"), **set_in).output.startswith(
        f"Error: {tmp_path / 'given'} holds no run"
    )
    assert invoke("report", **set_in).output.startswith("Error: short holds no run")
    del set_in["BITFLEET_CALIB_DIR"]
    assert invoke("report", **set_in).output.startswith("Error: long holds no run")


@pytest.mark.parametrize("variable", ["BITFLEET_VERSION", "BITFLEET_HELP", "BITFLEET_SEED", "BITFLEET_CHAOS"])
def test_variables_that_say_other_things(variable: str) -> None:
    assert "holds no run" in invoke("report", **{variable: "full"}).output


@pytest.mark.parametrize("program", MAINS)
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion(program: str, shell: str) -> None:
    variable = f"_{program.upper()}_COMPLETE"
    script = invoke(program=program, **{variable: f"{shell}_source"}).output
    assert variable in script
    assert f"{shell}_complete" in script
    words = {"COMP_WORDS": f"{program} sta", "COMP_CWORD": "sta" if shell == "fish" else "1"}
    assert {"producer": "status", "worker": "start"}[program] in invoke(
        program=program, **{variable: f"{shell}_complete"}, **words
    ).output


@pytest.mark.slow
@pytest.mark.parametrize("program", MAINS)
def test_completion_in_bash_itself(program: str) -> None:
    bash = shutil.which("bash")
    if (
        bash is None
        or subprocess.run([bash, "-c", "((BASH_VERSINFO[0] * 10 + BASH_VERSINFO[1] >= 44))"]).returncode
    ):
        pytest.skip("no bash 4.4 or newer here")
    programs = Path(sys.executable).parent
    script = f"""
        . <(_{program.upper()}_COMPLETE=bash_source {program}) || exit 1
        COMP_WORDS=({program} st) COMP_CWORD=1
        _{program}_completion {program}
        echo "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    found = subprocess.run(
        [bash, "--norc", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert {"producer": "status", "worker": "start"}[program] in found.stdout.split()


def test_completion_of_choices() -> None:
    words = {"COMP_WORDS": "producer enqueue-sensitivity --method ", "COMP_CWORD": "3"}
    found = invoke(_PRODUCER_COMPLETE="zsh_complete", **words).output.split()
    assert {"exact", "sketch"} <= set(found)


def test_spellings_of_other_tools() -> None:
    result = invoke("enqueue-calibration", "-m", "nonsense", "--steps", "2")
    assert "no model named 'nonsense'" in result.output
    assert "'--num-steps' / '--steps'" in invoke("run", "--steps", "0").output


@pytest.mark.parametrize("program", MAINS)
def test_every_command_is_quiet_or_verbose_when_asked(program: str) -> None:
    for name, command in MAINS[program].commands.items():
        words = {word for each in command.params for word in each.opts}
        assert {"-q", "--quiet", "-v", "--verbose", "--debug"} <= words, name


class TestQuiet:
    """Results that were asked for, warnings and errors are printed; nothing else."""

    @pytest.fixture
    def folder(self, tmp_path: Path, redis: Redis, redis_url: str) -> Folder:
        folder = Folder(tmp_path / "calib", redis, redis_url, 2)
        folder.call("collect")
        return folder

    @pytest.mark.parametrize(
        "line", ["pause", "resume", "cancel --all", "retry --all", "collect", "enqueue-levels --images 1"]
    )
    def test_what_is_done_is_not_told(self, folder: Folder, redis: Redis, line: str) -> None:
        words = line.split()
        options = ["--redis-url", folder.redis_url] if words[0] in ("pause", "resume") else folder.arguments()
        assert invoke(*words, *options).output
        assert invoke(*words, "--quiet", *options).output == ""

    @pytest.mark.parametrize("line", ["status", "status --json", "failures", "failures --json"])
    def test_what_was_asked_for_is_shown(self, folder: Folder, line: str) -> None:
        task_id = folder.images[0].id
        folder.queue.withdraw([task_id])
        folder.queue.connection.zadd(folder.queue.failed_job_registry.key, {task_id: 2e9})
        assert task_id in folder.call(*line.split(), "-q").output or line.startswith("status")
        loud = folder.call(*line.split()).output
        assert len(folder.call(*line.split(), "-q").output.splitlines()) == len(loud.splitlines()) > 1

    def test_failed_tasks_are_named(self, folder: Folder) -> None:
        task_id = folder.images[0].id
        folder.queue.withdraw([task_id])
        folder.queue.connection.zadd(folder.queue.failed_job_registry.key, {task_id: 2e9})
        assert folder.call("collect", "-q").output == "failed: image 0: failed\n"

    def test_a_dry_run_is_asked_for(self, folder: Folder) -> None:
        said = folder.call("enqueue-levels", "--images", "1", "--dry-run", "-q").output
        assert said.startswith("cost: 2 tasks")

    def test_a_doctor_tells_what_is_wrong(self, folder: Folder) -> None:
        lines = folder.call("doctor", "-q").output.splitlines()
        assert lines
        assert not [line for line in lines if line.startswith(("ok", "skipped"))]
        assert "ok       Redis" in folder.call("doctor").output

    def test_a_worker_that_fetches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("worker.service.fetch.fetch_model", lambda *_, **__: [("vae", "0" * 64)])
        assert "ready" in invoke("fetch", "tiny-sd3", program="worker").output
        assert invoke("fetch", "tiny-sd3", "-q", program="worker").output == ""


@pytest.mark.parametrize(
    ("program", "line"),
    [("producer", "report"), ("producer", "export --plan no.json --out out"), ("worker", "fetch no-model")],
)
def test_a_traceback_is_shown_when_asked_for(program: str, line: str, tmp_path: Path) -> None:
    environment = {"BITFLEET_CALIB_DIR": str(tmp_path)}
    short = invoke(*line.split(), program=program, **environment)
    assert isinstance(short.exception, SystemExit)
    assert short.output.startswith("Error: ")
    long = invoke(*line.split(), "-v", program=program, **environment)
    assert not isinstance(long.exception, SystemExit)
    assert long.exception is not None
    assert str(long.exception).split()[0] in short.output


def test_quiet_is_over_when_the_command_is() -> None:
    assert invoke("report", "-q").output.startswith("Error:")
    assert not is_quiet()


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    for set_to, coloured in ((None, True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", set_to or "")
        console = PlainConsole()
        with console.capture() as shown:
            console.print("text", style="red")
        assert ("\x1b[31m" in shown.get()) == coloured


def test_the_table_of_short_names_is_whole() -> None:
    text = (ROOT / "docs" / "options.md").read_text()
    for main in MAINS.values():
        for command in main.commands.values():
            for parameter in command.params:
                if isinstance(parameter.envvar, str):
                    assert f"| `{parameter.envvar}` | `{parameter.opts[-1]}`" in text
