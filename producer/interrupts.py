"""Ctrl-C that can't get lost: an exception raised within a destructor or a callback is swallowed."""

import signal
from types import FrameType, TracebackType


class Interrupts:
    """While this context lasts, SIGINT and SIGTERM raise KeyboardInterrupt, now or at the next `check`."""

    def __init__(self) -> None:
        self._seen = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal came whose exception was swallowed."""
        if self._seen:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        raise KeyboardInterrupt
