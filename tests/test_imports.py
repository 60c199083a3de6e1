"""Who may import what: the producer's machine has no MLX, and the packages know each other one way."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"mlx", "diffusionkit", "torch", "transformers"}
KNOWS = {
    "shared": {"shared"},
    "producer": {"producer", "shared"},
    "worker": {"worker", "shared"},
}


def modules(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def imports(tree: ast.AST) -> Iterator[str]:
    """Top-level names of all imports, those within functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports"
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize("package", KNOWS)
def test_packages_know_each_other_one_way(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        imported = set(imports(ast.parse(path.read_text()))) & {*KNOWS, "tests", "benchmarks", "training"}
        assert imported <= KNOWS[package], path


@pytest.mark.parametrize("package", ["producer", "shared"])
def test_only_the_worker_names_mlx(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        assert not set(imports(ast.parse(path.read_text()))) & HEAVY, path


def loaded_by(names: list[str]) -> set[str]:
    """Top-level modules that a fresh process has after importing `names`."""
    script = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.slow
def test_nothing_that_producer_and_shared_import_loads_mlx() -> None:
    names = [name for package in ("shared", "producer") for name in modules(package)]
    assert {"producer.cli", "shared.kinds.registry"} <= set(names)
    loaded = loaded_by(names)
    assert {"producer", "shared", "redis"} <= loaded
    assert not loaded & (HEAVY | {"worker"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["worker.cli", "worker.service.process", "worker.jobs.lease_worker"])
def test_a_worker_loads_mlx_with_its_first_job_only(name: str) -> None:
    assert not loaded_by([name]) & HEAVY


@pytest.mark.slow
def test_the_converter_to_core_ml_is_left_out() -> None:
    loaded = loaded_by(["worker.families.diffusionkit.loading"])
    assert {"diffusionkit", "mlx"} <= loaded
    assert not loaded & {"coremltools", "sklearn"}


@pytest.mark.parametrize("name", ["producer.cli", "worker.cli"])
def test_help_loads_nothing_slow(name: str) -> None:
    assert not loaded_by([name]) & (HEAVY | {"numpy", "redis", "rq", "matplotlib", "scipy", "fsspec"})


@pytest.mark.parametrize("package", KNOWS)
def test_no_module_hides_one_of_the_standard_library(package: str) -> None:
    for name in modules(package):
        parts = name.split(".")[1:]
        assert not parts or parts[-1].startswith("__") or parts[-1] not in sys.stdlib_module_names
