"""The program that quantizes and writes, as a child process: the producer imports no MLX."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from producer.jobs.local_fleet import LAUNCHER
from shared.errors import BitfleetError
from shared.exported import ExportRequest, encode_indented

PROGRAM = "worker.export.program"


class ExportFailedError(BitfleetError):
    """The exporter could not write the model. The message is its own."""


def write_model(
    request: ExportRequest, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Have a model quantized and written into an empty folder.

    Args:
        request: what to write.
        folder: an empty folder.
        progress: told how many tensors of how many are written.

    Raises:
        ExportFailedError: the worker's libraries are missing, the model is, or the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="bitfleet-export-") as temporary:
        path = Path(temporary) / "request.json"
        path.write_bytes(encode_indented(request))
        # A file, not a pipe: nobody reads it before the end.
        with (Path(temporary) / "errors").open("w+") as errors:
            code = _run([str(path), str(folder)], errors.fileno(), progress)
            if code:
                errors.seek(0)
                raise ExportFailedError(_last_line(errors.read()) or f"the exporter ended with code {code}")


def _run(arguments: list[str], errors: int, progress: Callable[[int, int], None]) -> int:
    command = [sys.executable, "-P", str(LAUNCHER), PROGRAM, *arguments]
    # The other end of its input closes with us, and it leaves.
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process:
        try:
            for line in process.stdout or ():
                done, _, total = line.partition(" ")
                if done.isdecimal() and total.strip().isdecimal():
                    progress(int(done), int(total))
            return process.wait()
        except BaseException:
            process.kill()
            raise


def _last_line(text: str) -> str:
    """Of a traceback, too, the last line says what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
