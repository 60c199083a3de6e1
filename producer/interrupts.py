"""Handle Ctrl-C reliably: Python swallows an exception that a signal raises in a destructor or callback."""

import signal
from types import FrameType, TracebackType


class Interrupts:
    """Makes SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, at once or at the next `check`.

    A context manager. SIGHUP comes when a terminal is closed; one that is ignored, as under nohup, stays so.
    """

    def __init__(self) -> None:
        self._seen = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was a signal."""
        if self._seen:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        raise KeyboardInterrupt
