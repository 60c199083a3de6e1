"""The program that writes a quantized model: `python -P launch.py worker.export.program REQUEST FOLDER`

The producer starts it, for it imports no MLX itself. Each line of standard output says how many tensors of
how many are written; an error is one line of standard error, and exit code 2. It ends with the producer,
which holds the other end of its standard input.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from shared.decoding import decode
from shared.errors import BitfleetError, InputError, RunMismatchError
from shared.exported import ExportRequest, request_decoder
from worker.service.parent import leave_with_parent


def export(
    request: ExportRequest, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Quantize a model as asked, and write it into an empty folder.

    Raises:
        RunMismatchError: the model's files, or the checkpoint, are not those that the plan was made for.
        ModelUnavailableError: a file is missing, gated, or holds another model.
        TaskRefusedError: a layer is missing, or MLX can't quantize it so.
        OSError: the disk is full or can't be written.
    """
    from worker.export.write import quantize, write_quantized
    from worker.families.registry import load_family

    run = request.origin.run
    checkpoint = Path(request.checkpoint) if request.checkpoint else None
    family = load_family(run, checkpoint, ("transformer",))
    if family.fingerprint != request.origin.fingerprint:
        raise RunMismatchError(
            f"the files of {run.model} on this machine ({family.fingerprint[:12]}) are not those that the "
            f"plan was made for ({request.origin.fingerprint[:12]}); download the model again, or export on "
            "another machine"
        )
    transformer = family.transformer
    write_quantized(
        transformer,
        quantize(transformer, request.layers),
        request.origin,
        folder,
        max_file_bytes=request.max_file_bytes,
        progress=progress,
    )


def main(arguments: list[str]) -> int:
    """Export; return the exit code."""
    path, folder = arguments
    leave_with_parent()
    try:
        request = decode(request_decoder, Path(path).read_bytes(), InputError, f"{path} is no request")
        export(request, Path(folder), lambda done, total: print(done, total, flush=True))  # noqa: T201
    except BitfleetError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    except OSError as error:
        print(f"{error.filename or folder}: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
