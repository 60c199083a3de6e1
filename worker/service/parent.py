"""Whether the process that started this one is still there: it holds the other end of our standard input.

A pipe closes with its holder, however that ended and however early: also before we could ask for its id.
"""

import os
import select
import signal
import threading
import time

STDIN = 0


def parent_is_gone() -> bool:
    """Return whether the other end of standard input is closed. Does not wait."""
    readable, _, _ = select.select([STDIN], [], [], 0)
    return bool(readable) and not os.read(STDIN, 1)


def leave_with_parent(kill_after: float | None = None) -> None:
    """Send this process its two signals to stop once its parent is gone: a job is handed back then.

    Args:
        kill_after: seconds after which the process is killed if it is still there, as it would be for
            minutes where Redis is gone, too. None: never.
    """

    def watch() -> None:
        while os.read(STDIN, 1):
            pass
        # One signal asks to finish the job, two hand it back. Two of one kind would count as one while the
        # main thread computes and gets round to neither.
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()
