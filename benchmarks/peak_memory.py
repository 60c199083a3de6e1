"""Time and peak memory of the producer, in a process of its own that imports nothing else.

    python -P benchmarks/peak_memory.py command ARGUMENTS...    a command of the producer
    python -P benchmarks/peak_memory.py passes FOLDER           a collector's passes, with $REDIS_URL

Prints figures as JSON in the last line. It is started by its path: the package `benchmarks` loads a BLAS.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """Return the peak memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # The kernel's ru_maxrss also counts the process that started this one.
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_command(*arguments: str) -> dict[str, Any]:
    """Run a command of the producer."""
    from producer.cli import main

    started = time.perf_counter()
    code: object = 0
    try:
        main(list(arguments), standalone_mode=False)
    except SystemExit as error:
        code = error.code
    return {"code": code, "seconds": time.perf_counter() - started, "peak": peak_bytes()}


def pass_three_times(root: str) -> dict[str, Any]:
    """Make a first pass over a folder, and two that find nothing new."""
    from producer.collect import Collector
    from producer.folder.calib_folder import CalibFolder
    from producer.ledger import Ledger
    from shared.jobs.connection import connect
    from shared.stores.relay_store import RelayStore

    def complain(line: str) -> None:
        raise AssertionError(line)

    connection = connect(os.environ["REDIS_URL"])
    before = peak_bytes()
    collector = Collector(Ledger(CalibFolder(Path(root)), connection, RelayStore(connection)), complain)
    seconds, cpu = [], []
    for _ in range(3):
        started, used = time.perf_counter(), time.process_time()
        (state,) = collector.collect()
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    facts = {
        "collected": state.done,
        "queued": state.in_flight,
        "memory before: MB": before / 1e6,
        "first pass: seconds": seconds[0],
        "idle pass: seconds": min(seconds[1:]),
    }
    return {"first": cpu[0], "idle": min(cpu[1:]), "peak": peak_bytes(), "facts": facts}


if __name__ == "__main__":
    work = {"command": run_command, "passes": pass_three_times}[sys.argv[1]]
    print(json.dumps(work(*sys.argv[2:])))
