"""A fleet on this machine for end-to-end tests: a real redis-server, the commands in real processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner

import producer.cli

ROOT = Path(__file__).parent.parent
PROMPTS = ["a red circle", "a small blue square", "a green triangle", "a large yellow circle"]


@dataclass
class Fleet:
    """Runs `producer` and `worker` as a user would, in a folder and with a cache of its own."""

    folder: Path
    redis_url: str | None
    cache: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    root: Path = ROOT
    """Where the packages are."""

    def __post_init__(self) -> None:
        rows = "\n".join(PROMPTS)
        self.folder.mkdir(exist_ok=True)
        (self.folder / "prompts.csv").write_text(f"prompt\n{rows}\n")

    @property
    def environment(self) -> dict[str, str]:
        names = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "BITFLEET_STORE")}
        names |= {"XDG_CACHE_HOME": str(self.cache), "PYTHONPATH": str(self.root), "COLUMNS": "200"}
        return names | ({"REDIS_URL": self.redis_url} if self.redis_url else {})

    @property
    def calib(self) -> Path:
        return self.folder / "calibration_data"

    def start(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", f"{program}.cli", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def run(self, program: str, *arguments: str, code: int = 0, timeout: float = 240) -> str:
        process = self.start(program, *arguments)
        output, _ = process.communicate(timeout=timeout)
        assert process.returncode == code, f"exit code {process.returncode}\n{output}"
        assert "Traceback" not in output, output
        return output

    def producer(self, *arguments: str, code: int = 0, timeout: float = 240) -> str:
        """The command in this process, which saves its start; `run` and copied packages get their own."""
        if arguments[0] == "run" or self.root != ROOT:
            return self.run("producer", *arguments, code=code, timeout=timeout)
        with contextlib.chdir(self.folder):
            result = CliRunner().invoke(producer.cli.main, arguments, env=self.environment)
        assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}"
        assert isinstance(result.exception, SystemExit | None), result.exception
        return result.output

    def enqueue(self, images: int = 2, *more: str) -> str:
        return self.producer(
            "enqueue-calibration", "--model", "tiny-sd3", "--num-images", str(images), "--num-steps", "3",
            "--prompt-csv", "prompts.csv", *more,
        )  # fmt: skip

    def work(self, *more: str) -> str:
        """Workers until the queue is empty."""
        return self.run("worker", "start", "--burst", *more)

    def json(self, name: str) -> Any:
        return json.loads((self.calib / name).read_text())

    def finished_at(self) -> dict[str, str]:
        """Record name to when its task was finished: unchanged means not done again."""
        records = self.calib.rglob("records/*.json")
        return {path.name: json.loads(path.read_text())["finished_at"] for path in records}

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                time.sleep(0.3)
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
            if process.stdout:
                process.stdout.close()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
