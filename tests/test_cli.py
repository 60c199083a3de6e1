"""The command lines: help at once, one line for bad input, and documents that say what is true."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import producer.cli
import worker.cli
from producer.commands import enqueue_sensitivity
from producer.prompts import default_prompts
from shared.errors import InputError
from shared.models import model_spec

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GROUPS: dict[str, click.Group] = {"producer": producer.cli.main, "worker": worker.cli.main}


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt\na red circle\n")
    return str(path)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(GROUPS[arguments[0]], arguments[1:])
    return result.exit_code, result.output


def options_of(command: click.Command) -> set[str]:
    options = (parameter for parameter in command.params if isinstance(parameter, click.Option))
    return {name for option in options for name in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("module", ["producer.cli", "worker.cli"])
def test_help_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.split()
    heavy = {
        "redis",
        "rq",
        "numpy",
        "rich",
        "scipy",
        "jinja2",
        "fsspec",
        "msgspec",
        "mlx",
        "diffusionkit",
        "torch",
    }
    assert module in modules
    assert not heavy & set(modules)


@pytest.mark.parametrize("group", GROUPS)
def test_every_command_and_option_explains_itself(group: str) -> None:
    assert invoke(group, "--help")[0] == 0
    for name, command in GROUPS[group].commands.items():
        code, text = invoke(group, name, "--help")
        assert code == 0
        assert command.help
        for option in options_of(command):
            hidden = any(option in p.opts and getattr(p, "hidden", False) for p in command.params)
            assert hidden or option in text


def test_the_documents_name_every_command() -> None:
    text = (DOCS / "commands.md").read_text()
    for group, commands in GROUPS.items():
        for name in commands.commands:
            assert f"| `{group} {name}` |" in text


def test_defaults_in_the_documents_are_the_code_s() -> None:
    calibration = GROUPS["producer"].commands["enqueue-calibration"]
    defaults = {parameter.opts[0]: parameter.default for parameter in calibration.params}
    assert (defaults["--num-images"], defaults["--seed"]) == (100, 0)
    spec = model_spec(str(defaults["--model"]))
    assert (spec.num_steps, spec.cfg_weight, spec.image_size) == (50, 7.5, 512)
    assert str(default_prompts(spec.id)) == "all_prompts.csv"
    assert str(defaults["--calib-dir"]) == "calibration_data"
    for value in ("100, 50, 7.5", "`all_prompts.csv`", "2,3,4,5,6,8", f"`{defaults['--model']}`"):
        assert value in (DOCS / "options.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "nothing"], "no model named 'nothing'"),
        (["--model", "argmaxinc/mlx-FLUX.1-schnell-4bit-quantized"], "is quantized already"),
        (["--image-size", "100"], "--image-size 100 is no multiple of 16; use 96 or 112"),
        (["--model", "argmaxinc/mlx-FLUX.1-dev", "--cfg-weight", "3"], "takes no --cfg-weight"),
        (["--model", "argmaxinc/mlx-FLUX.1-dev", "--no-t5"], "can't do without T5"),
        (["--model", "tiny-sd3", "--use-t5"], "has no T5"),
        (["--guidance", "3"], "has no guidance embedding; leave out --guidance"),
        (
            ["--model", "argmaxinc/mlx-FLUX.1-dev", "--guidance", "3", "--reference", "diffusionkit"],
            "runs argmaxinc/mlx-FLUX.1-dev without its guidance",
        ),
        (["--reference", "mflux"], "is not one of"),
        (
            ["--model", "demo", "--image-size", "128"],
            "at most 64 pixels, not 128; use --image-size 64",
        ),
        (["--image-size", "2048"], "draws at most 1536 pixels"),
        (["--relay-limit", "4"], "--relay-limit 4 is 4 bytes, too little for the shards of one image"),
        (["--num-images", "2"], "has 1 prompts, 2 images need as many"),
        (["--checkpoint", "nowhere.safetensors"], "does not exist"),
        (["--seed", "-1"], "not in the range"),
        (["--redis-url", "http://localhost"], "not a Redis URL"),
        (["--redis-url", "redis://:secret@localhost:1"], "no Redis at redis://***@localhost:1"),
        (["--redis-url", "redis://:7/secret@localhost"], "not a Redis URL: redis://***"),
        (["--store", "s3:/KEY:secret@bucket"], "neither a folder nor a URL"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    redis_url: str, prompts: str, arguments: list[str], says: str
) -> None:
    folder = Path(prompts).parent / "data"
    base = ["producer", "enqueue-calibration", "--prompt-csv", prompts, "--num-images", "1"]
    base += ["--calib-dir", str(folder)]
    if "--store" in arguments:
        base += ["--redis-url", redis_url]
    code, text = invoke(*base, *arguments)
    assert code == 2
    assert says in text
    assert "secret" not in text
    assert "Traceback" not in text
    assert len([line for line in text.splitlines() if line.startswith("Error")]) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bits", "4,7"], "MLX can't quantize to 7 bits"),
        (["--bits", "four"], "no list of whole numbers"),
        (["--group-size", "48"], "is not one of"),
        (["--step-stride", "0"], "not in the range"),
        (["--until", "0"], "not in the range"),
        (["--precision", "half"], "is not one of"),
    ],
)
def test_bad_sensitivity_options(arguments: list[str], says: str) -> None:
    code, text = invoke("producer", "enqueue-sensitivity", *arguments)
    assert (code, says in text) == (2, True), text


def test_a_sketch_has_one_precision(tmp_path: Path) -> None:
    fleet: Any = None
    options: dict[str, Any] = {"max_images": None, "step_stride": None, "group_size": "64", "verify": 0}
    with pytest.raises(InputError, match="always computed in float32"):
        enqueue_sensitivity(tmp_path, fleet, method="sketch", precision="model", **options)


def test_without_a_redis_there_are_three_ways_on() -> None:
    code, text = invoke("producer", "status", "--redis-url", "redis://localhost:1")
    assert code == 2
    for way in ("docker compose up", "redis-server", "producer run"):
        assert way in text


def test_the_url_may_stand_in_a_file_that_is_its_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "redis-url"
    path.write_text("redis://:secret@localhost:1\n")
    path.chmod(0o600)
    code, text = invoke("producer", "status", "--redis-url-file", str(path))
    assert (code, "no Redis at redis://***@localhost:1" in text) == (2, True), text
    code, text = invoke("worker", "start", "--redis-url-file", str(path))
    assert (code, "no Redis at redis://***@localhost:1" in text) == (2, True), text
    code, text = invoke("producer", "status", "--redis-url-file", str(path), "--redis-url", "redis://x")
    assert (code, "not both" in text) == (2, True), text
    path.chmod(0o644)
    code, text = invoke("producer", "status", "--redis-url-file", str(path))
    assert (code, "which holds a password; run: chmod 600" in text) == (2, True), text
    path.write_text("")
    path.chmod(0o600)
    code, text = invoke("producer", "status", "--redis-url-file", str(path))
    assert (code, "must hold exactly one line" in text) == (2, True), text


def test_a_relative_store_is_told_with_its_whole_path(redis_url: str) -> None:
    code, text = invoke("worker", "start", "--redis-url", redis_url, "--store", "nowhere")
    assert (code, f"{Path('nowhere').absolute()} is no shard store" in text) == (2, True), text


def test_debug_gives_the_traceback() -> None:
    result = CliRunner().invoke(
        producer.cli.main, ["status", "--redis-url", "redis://localhost:1", "--debug"]
    )
    assert type(result.exception).__name__ == "RedisUnavailableError"
