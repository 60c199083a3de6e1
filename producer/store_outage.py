"""Tells when a store goes away and when it is back, to whoever waits for what comes into it."""

import time
from collections.abc import Callable

from shared.jobs.outage import TELL_SECONDS
from shared.printable import printable


class StoreOutage:
    """One collector's view of its store: there, or away since when."""

    def __init__(
        self, label: str, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`label` names the store. `tell` gets a line once an outage has lasted, and one at its end."""
        self._label, self._tell, self._clock = label, tell, clock
        self._since: float | None = None
        self._told = False

    def failed(self, error: Exception) -> None:
        """Note that the store could not be used."""
        now = self._clock()
        if self._since is None:
            self._since = now
        if not self._told and now - self._since >= TELL_SECONDS:
            self._told = True
            self._tell(f"waiting for {self._label}, nothing is lost: {printable(str(error))}")

    def answered(self) -> None:
        """Note that it could."""
        if self._told and self._since is not None:
            self._tell(f"{self._label} is back, after {self._clock() - self._since:.0f} s")
        self._since, self._told = None, False
