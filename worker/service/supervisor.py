"""Keeps N worker processes alive: starts them, restarts them with growing pauses, passes signals on. Loads
no MLX.
"""

import logging
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import msgspec

from shared.awake import awake
from worker.jobs.post_mortem import cause_of_death, report_death
from worker.service.machine import host_name
from worker.service.options import WorkerOptions, new_worker_name
from worker.service.parent import parent_is_gone
from worker.service.process import EXIT_DRAINED, EXIT_REFUSED, EXIT_TROUBLE

logger = logging.getLogger("bitfleet.worker")

LAUNCHER = Path(__file__).resolve().parents[1] / "launch.py"
POLL_SECONDS = 0.1
HEALTHY_SECONDS = 60.0
"""After this many seconds of life, a worker's next restart pause is short again."""
PROVEN_SECONDS = 10.0
"""Once a worker has lived this long, a later start that is refused is tried again: a share can be mounted
again, an update of a library ends."""
LEAVE_SECONDS = 2.0
"""How long workers may take to hand their jobs back once our parent is gone: most often their Redis ended
with it. Of one that is killed then, we return the job if there is a Redis."""
MAX_TROUBLES = 5
"""With --burst, how many workers in a row may find Redis or the store out of reach before we give up."""


@dataclass(slots=True)
class _Slot:
    """One of the N worker processes, or the pause before it is started again."""

    backoff: float
    """Seconds to wait before the next start, should the process die."""
    process: subprocess.Popen[bytes] | None = None
    name: str = ""
    started: float = 0.0
    start_at: float = 0.0
    proven: bool = False
    """Whether a worker could work here."""
    troubles: int = 0
    """How many workers in a row found Redis or store out of reach."""
    over: bool = False


class Supervisor:
    """Runs until all workers have exited for good."""

    module = "worker.service.process"
    """What a worker process runs."""
    first_backoff = 1.0
    max_backoff = 60.0
    """Seconds between a worker's death and the next start: at first, and at most."""

    def __init__(
        self, options: WorkerOptions, count: int, *, queue_name: str, with_parent: bool = False
    ) -> None:
        self._options = options
        self._queue_name = queue_name
        self._slots = [_Slot(self.first_backoff) for _ in range(count)]
        self._signals = 0
        self._exit_code = 0
        self._with_parent = with_parent
        self._orphaned: float | None = None
        """Since when the parent is gone, on the monotonic clock."""

    def run(self) -> int:
        """Supervise; return 0, or 2 when this machine can't serve the run."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hand_on)
        with awake():
            while not all(slot.over for slot in self._slots):
                for slot in self._slots:
                    self._look_after(slot)
                time.sleep(POLL_SECONDS)
                if self._with_parent:
                    self._leave_with_parent()
        return self._exit_code

    def _leave_with_parent(self) -> None:
        """Stop the workers once the parent is gone, and kill those that can't: their Redis ended, too."""
        if self._orphaned is None and parent_is_gone():
            self._orphaned = time.monotonic()
            self._hand_on(signal.SIGTERM, None)
            self._hand_on(signal.SIGTERM, None)
        elif self._orphaned is not None and time.monotonic() - self._orphaned > LEAVE_SECONDS:
            self._hand_on(signal.SIGTERM, None)

    def _look_after(self, slot: _Slot) -> None:
        if slot.over:
            return
        if slot.process is None:
            if self._signals:
                slot.over = True
            elif time.monotonic() >= slot.start_at:
                self._start(slot)
            return
        code = slot.process.poll()
        if code is None:
            return
        lived = time.monotonic() - slot.started
        if slot.process.stdin:
            slot.process.stdin.close()
        slot.process = None
        if code == EXIT_DRAINED:
            slot.over = True
            return
        if code not in (0, EXIT_REFUSED):
            # What we killed is nobody's fault.
            cause = code if self._signals < 3 else -signal.SIGTERM
            report_death(self._options.redis_url, self._queue_name, slot.name, cause)
        no_use = self._is_of_no_use(slot, code, lived)
        if self._signals or no_use or (code == 0 and self._options.burst):
            slot.over = True
            self._exit_code = max(self._exit_code, EXIT_REFUSED if no_use else 0)
            return
        slot.backoff = self.first_backoff if lived > HEALTHY_SECONDS else slot.backoff
        slot.start_at = time.monotonic() + slot.backoff
        logger.warning("a worker died (%s); starting another in %.0f s", cause_of_death(code), slot.backoff)
        slot.backoff = min(slot.backoff * 2, self.max_backoff)

    def _is_of_no_use(self, slot: _Slot, code: int, lived: float) -> bool:
        """Whether another worker would end like this one. What can heal is waited for."""
        slot.proven = slot.proven or lived > PROVEN_SECONDS
        slot.troubles = slot.troubles + 1 if code == EXIT_TROUBLE else 0
        if code == EXIT_REFUSED:
            return self._options.burst or self._options.alone or not slot.proven
        return self._options.burst and slot.troubles > MAX_TROUBLES

    def _start(self, slot: _Slot) -> None:
        slot.name = new_worker_name(host_name())
        options = msgspec.structs.replace(self._options, name=slot.name)
        slot.process = subprocess.Popen(
            [sys.executable, "-P", str(LAUNCHER), self.module],
            env=options.to_environment(),
            # Its other end closes with us: see worker.service.parent.
            stdin=subprocess.PIPE,
            # A terminal's Ctrl-C reaches only us, so that the workers get each signal once.
            start_new_session=True,
        )
        slot.started = time.monotonic()

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        # Read the count now: the next signal may arrive before this one is passed on.
        count = self._signals
        if self._with_parent and self._orphaned is None:
            # `producer run` prints its own messages.
            pass
        elif count == 1:
            logger.warning("stopping: jobs that run are finished first; Ctrl-C again hands them back now")
        elif count == 2:
            logger.warning("stopping now: jobs that run go back to the queue")
        for slot in self._slots:
            if slot.process and slot.process.poll() is None:
                if count <= 2:
                    # Different signals, since two of one kind count as one while a process computes.
                    slot.process.send_signal(signal.SIGTERM if count == 1 else signal.SIGINT)
                else:
                    slot.process.kill()
