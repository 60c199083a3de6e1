"""Who may import what: the producer's machine has no MLX, and the packages know each other one way."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.collected_folder import make_collected_folder
from shared.stores.relay_store import RELAY_ID

ROOT = Path(__file__).parent.parent
HEAVY = {"mlx", "diffusionkit", "torch", "transformers"}
SLOW = {"fsspec", "itables", "jinja2", "numpy", "pandas", "rich", "safetensors", "scipy"}
"""What a person who looks or steers need not wait for."""
LIGHT = [
    "status --json",
    "pause",
    "resume",
    "failures",
    "runs",
    "cancel image*",
    "retry --all",
    "doctor",
]
KNOWS = {
    "shared": {"shared"},
    "producer": {"producer", "shared"},
    "worker": {"worker", "shared"},
}


def modules(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imports, those within functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports"
            yield str(node.module)
            # A module, or a name in one.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(tree: ast.AST) -> Iterator[str]:
    """Top-level names of all imports."""
    return (name.partition(".")[0] for name in imported_modules(tree))


@pytest.mark.parametrize("package", KNOWS)
def test_packages_know_each_other_one_way(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        imported = set(imports(ast.parse(path.read_text()))) & {*KNOWS, "tests", "benchmarks", "training"}
        assert imported <= KNOWS[package], path


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("rq", ["shared/jobs", "worker/jobs", "producer/jobs"]),
        ("diffusionkit", ["worker/families"]),
    ],
)
def test_a_library_has_its_own_rooms(library: str, rooms: list[str]) -> None:
    found = set()
    for package in KNOWS:
        for path in (ROOT / package).rglob("*.py"):
            if library in imports(ast.parse(path.read_text())):
                found.add(path.relative_to(ROOT))
    assert found
    assert not [path for path in found if not path.as_posix().startswith(tuple(f"{room}/" for room in rooms))]


@pytest.mark.parametrize("room", ["engine", "kinds", "service", "jobs"])
def test_families_are_known_by_their_interface(room: str) -> None:
    """The registry loads them by name; all else takes what `Family` says."""
    interface = ("worker.families.family", "worker.families.registry")
    for path in (ROOT / "worker" / room).rglob("*.py"):
        named = {name for name in imported_modules(ast.parse(path.read_text())) if "worker.families" in name}
        assert not {name for name in named if not name.startswith(interface)}, path


def test_the_engine_room_names_nothing_of_one_library() -> None:
    for path in (ROOT / "worker/engine").rglob("*.py"):
        text = path.read_text().lower()
        assert not [word for word in ("diffusionkit", "mmdit", "transformer_blocks") if word in text], path


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
    assert not loaded_by([name]) & (HEAVY | SLOW | {"msgspec", "redis", "rq"})


@pytest.mark.slow
def test_whoever_looks_and_steers_loads_nothing_slow(redis_url: str, tmp_path: Path) -> None:
    """All of these on a run that has failed tasks, in one process, with what they call."""
    make_collected_folder(
        tmp_path / "run", images=4, missing=2, num_steps=1, latent=2, text_width=8, store_id=RELAY_ID
    )
    script = (
        "import sys\n"
        "from producer.cli import main\n"
        f"for line in {LIGHT!r}:\n"
        "    print('->', line, file=sys.stderr)\n"
        "    try: main(line.split())\n"
        "    except SystemExit as end: assert end.code == 0, (line, end.code)\n"
        "print('LOADED', *{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"REDIS_URL": redis_url, "BITFLEET_CALIB_DIR": str(tmp_path / "run")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert {"producer", "redis", "rq"} <= loaded
    assert not loaded & (HEAVY | SLOW)


@pytest.mark.parametrize("package", KNOWS)
def test_no_module_hides_one_of_the_standard_library(package: str) -> None:
    for name in modules(package):
        parts = name.split(".")[1:]
        assert not parts or parts[-1].startswith("__") or parts[-1] not in sys.stdlib_module_names


def test_every_room_is_in_the_map() -> None:
    rooms = {
        str(path.parent.relative_to(ROOT))
        for package in ("shared", "producer", "worker")
        for path in (ROOT / package).glob("*/__init__.py")
    }
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert {room for room in rooms if f"| `{room}` |" not in contributing} == set()
