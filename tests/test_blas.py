"""MLX's matrix products on Linux: a fast BLAS, no more threads than cores, and the same answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.tasks import SETTINGS
from worker.service.blas import THREAD_VARIABLES, all_fast_blas, find_fast_blas, limit_threads
from worker.service.canary_votes import TOLERANCES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a Mac has Accelerate")

ROOT = Path(__file__).parent.parent
TORCH = "torch/lib/libtorch_cpu.so"


@pytest.fixture
def openblas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As if the system had one here, which it has not yet."""
    library = tmp_path / "libopenblas.so.0"
    monkeypatch.setattr("worker.service.blas._OPENBLAS", (str(tmp_path / "nowhere.so"), str(library)))
    return library


def test_openblas_comes_before_torch(openblas: Path) -> None:
    found = find_fast_blas()
    assert found
    assert str(found).endswith(TORCH)
    openblas.touch()
    assert find_fast_blas() == openblas


def test_no_torch_no_blas(openblas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert find_fast_blas() is None


def test_a_mac_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert find_fast_blas() is None


@pytest.mark.parametrize(("cores", "processes", "threads"), [(8, 2, "4"), (8, 3, "2"), (2, 3, "1")])
def test_processes_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, threads: str
) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    limit_threads(processes)
    assert os.environ == dict.fromkeys(THREAD_VARIABLES, threads) | {"OMP_WAIT_POLICY": "PASSIVE"}


def test_a_number_of_threads_that_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"MKL_NUM_THREADS": "3"})
    limit_threads(2)
    assert os.environ == {"MKL_NUM_THREADS": "3"}


CANARY = """
import json, sys
from worker.service import blas
if sys.argv[1]:
    blas._OPENBLAS = (sys.argv[1],)
    blas.use_fast_blas()
import msgspec
from shared.runs import RunSettings
from worker.service.canary import measure_canary
from worker.families.registry import load_family

run = msgspec.json.decode(sys.argv[2], type=RunSettings)
print(json.dumps(measure_canary(load_family(run), run).tolist()))
"""


def canary(library: str) -> np.ndarray:
    """What a fresh process measures whose MLX multiplies with `library`; with its own if that is empty."""
    run = msgspec.structs.replace(SETTINGS, model="demo")
    arguments = [sys.executable, "-c", CANARY, library, msgspec.json.encode(run).decode()]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    return np.array(json.loads(done.stdout))


@pytest.mark.slow
def test_every_blas_answers_the_canary_alike() -> None:
    own = canary("")
    for library in all_fast_blas():
        other = canary(str(library))
        difference = np.linalg.norm(other - own) / np.linalg.norm(own)
        # None at all would mean that MLX's own was used again.
        assert 0 < difference < TOLERANCES["float32"], library
