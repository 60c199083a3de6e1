"""MLX compiles into a folder of each process, and loads no library that somebody else left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fleet import ROOT
from worker.service import compile_cache

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a Mac compiles in memory")

SCRIPT = """
import sys
from pathlib import Path
from worker.service.compile_cache import use_own_compile_cache

folder = use_own_compile_cache() if "own" in sys.argv else Path("/tmp")
import mlx.core as mx

mx.eval(mx.compile(lambda x: mx.exp(x) * mx.sin(x) + 1.7)(mx.ones((4,))))
print(oct(folder.stat().st_mode & 0o777), folder)
"""


def run(temporary: Path, *arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, "TMPDIR": str(temporary), "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.slow
def test_a_library_of_another_user_is_not_loaded(tmp_path: Path) -> None:
    plain = run(tmp_path)
    assert plain.returncode == 0, plain.stderr
    (library,) = (tmp_path / "mlx").rglob("*.so")
    library.write_bytes(b"somebody else's")
    assert run(tmp_path).returncode != 0, "MLX loads what it finds, or this test is of no use any more"
    own = run(tmp_path, "own")
    assert own.returncode == 0, own.stderr
    mode, folder = own.stdout.split()
    assert mode == "0o700"
    assert not Path(folder).exists(), "a process that ends leaves nothing of its own"
    # The next one has what that one compiled: it needs no compiler.
    again = run(tmp_path, "own", path="/nowhere")
    assert again.returncode == 0, again.stderr
    assert again.stdout.split()[1] != folder


def test_a_place_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(compile_cache.tempfile, "tempdir", str(tmp_path))
    place = tmp_path / f"bitfleet-mlx-{os.getuid()}"
    assert compile_cache._users_folder() == place
    place.chmod(0o755)
    other = compile_cache._users_folder()
    assert other != place
    assert other.stat().st_mode & 0o777 == 0o700


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f"process-{dead.pid}-x", f"process-{os.getpid()}-x", "process-odd", "kept"):
        (tmp_path / name).mkdir()
    compile_cache._sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "kept",
        f"process-{os.getpid()}-x",
        "process-odd",
    ]
