"""Keeps a Mac from falling asleep for want of a user, as long as something is being done."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def awake() -> Iterator[None]:
    """Keep a Mac from idle sleep in the block. The display may sleep, and a closed lid still ends it."""
    caffeinate = shutil.which("caffeinate") if sys.platform == "darwin" else None
    if caffeinate is None:
        yield
        return
    # It ends with this process, too. Out of reach of a terminal's Ctrl-C, which only asks us to finish.
    process = subprocess.Popen([caffeinate, "-i", "-w", str(os.getpid())], start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
