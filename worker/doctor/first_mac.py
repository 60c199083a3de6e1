"""What the first person with a Mac is asked for beside the examination: the kind of session, and the demo."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from shared.doctor.check import Check, ok

DEMO = (
    *("run", "--model", "demo", "--num-images", "2", "--num-steps", "20", "--max-images", "2"),
    *("--step-stride", "4", "--bits", "4", "--method", "sketch", "--verify", "4"),
)
"""Two real pictures, a sketch of all layers, and four exact measurements."""
DEMO_SECONDS = 1800


def check_session(environment: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """Tell from what kind of session this was started: macOS lets only some into the local network."""
    if "SSH_CONNECTION" in environment:
        session = "ssh"
    elif "TMUX" in environment:
        session = "tmux"
    elif "TERM_PROGRAM" in environment:
        session = environment["TERM_PROGRAM"]
    else:
        session = "a terminal of no name" if sys.stdin.isatty() else "no terminal, as under launchd"
    yield ok("Session", session)


def check_demo(producer: Path | None = None) -> Iterator[Check]:
    """Run the demo as a user would, in a folder of its own, and tell its time and its largest memory.

    Args:
        producer: the command; the one beside this Python by default.
    """
    command = producer or Path(sys.executable).parent / "producer"
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bitfleet-demo-") as folder:
        prompts = Path(folder) / "prompts.csv"
        prompts.write_text("prompt\na red circle\na small blue square\n")
        ended = subprocess.run(
            [str(command), *DEMO, "--prompt-csv", str(prompts), "--calib-dir", str(Path(folder) / "data")],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEMO_SECONDS,
            check=False,
            env={name: value for name, value in os.environ.items() if name != "REDIS_URL"},
        )
    seconds = time.monotonic() - started
    if ended.returncode:
        lines = (ended.stderr or ended.stdout).strip().splitlines() or ["it said nothing"]
        yield Check(
            name="Demo",
            outcome="failed",
            found=f"exit code {ended.returncode}: {lines[-1][:300]}",
            cure="send this file with a report of it",
        )
        return
    # In bytes on a Mac, in units of 1024 elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    yield ok("Demo", f"took {seconds:.0f} s", seconds=seconds, peak_bytes=float(peak))
